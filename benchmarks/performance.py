"""docs/performance.md and its pictures, from the results of the rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks.markdown import FOLDER, fill, table
from benchmarks.row import UNITS, Goal, Result, Row
from jukesep.base.files import write_text
from jukesep.report import figures

PAGE = Path("docs/performance.md")
PICTURES = Path("docs/performance")

# Legible on a light page and on a dark one.
COLOURS = {"textbook": "#D98200", "jukesep": "#3388CC", "ideal": "#808080"}
GREY = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
STYLE: dict[str, Any] = {
    **{name: value for name, value in figures.STYLE.items() if not name.startswith("grid")},
    **dict.fromkeys((*GREY, "grid.color"), "#808080"),
    "grid.alpha": 0.25,
    "savefig.transparent": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "jukesep",
}
GROWTH = {
    "growth-segment": ("segment", "samples of the segment", "a step of stage 1, paper model"),
    "growth-batch": ("batch", "segments of 8,192 samples", "a step of stage 1, paper model"),
    "growth-song": ("song", "seconds of the song", "separation of one stem, mono, paper model"),
    "growth-cores": ("cores", "cores", "evaluation of a stem on four songs, demo model"),
}
PAGES = ("gpu", "paper-cpu", "paper-gpu")  # rows with a page of their own
MISSING = "Not measured yet."


Older = Mapping[str, Iterable[Result]]
"""Results of rows on other kinds of processors than the newest ones."""


def write(rows: Mapping[str, Row], found: Mapping[str, Result], older: Older) -> None:
    """The page, and a picture of each growth that was measured."""
    for name in GROWTH:
        if name in found:
            draw(name, found[name], PICTURES / f"{GROWTH[name][0]}.svg")
    write_text(PAGE, page(rows, found, older))


def page(rows: Mapping[str, Row], found: Mapping[str, Result], older: Older) -> str:
    """The text of docs/performance.md."""
    why = yaml.safe_load((FOLDER / "missed.yaml").read_text(encoding="utf-8"))
    done = {name: result for name, result in found.items() if name in rows}
    listed = {name: row for name, row in rows.items() if name not in (*GROWTH, *PAGES, "breakdown")}
    return fill(
        "performance",
        rows=_rows(listed, found, older),
        missed=_missed(listed, done, why),
        limit=_limit(done, older),
        breakdown=_breakdown(done["breakdown"]) if "breakdown" in done else MISSING,
        demo=_demo(done["repro"]) if "repro" in done else MISSING,
        growth=_growth(done),
        where=_where({name: done[name] for name in done if name not in PAGES}, older),
    )


def line(name: str, row: Row, result: Result) -> str:
    """A row in words, for the terminal."""
    cells = [row.what, *(f"{side} {_cost(values)}" for side, values in result.sides.items())]
    goals = [_goal(goal, result) for goal in row.goals]
    return f"{name}: " + "; ".join(
        filter(None, [*cells, *_others(row, result, ()), *goals, result.note])
    )


def _rows(rows: Mapping[str, Row], found: Mapping[str, Result], older: Older) -> str:
    lines = [["row", "what", "processor", "textbook", "jukesep", "speed", "memory", "goal", "also"]]
    for name, row in rows.items():
        if name not in found:
            lines.append([f"`{name}`", row.what, *[""] * 5, "not measured yet", ""])
            continue
        lines.append([f"`{name}`", row.what, found[name].kind, *_cells(row, found[name])])
        for result in older.get(name, ()):
            lines.append(["", "", f"{result.kind}, older", *_cells(row, result)])
    return table(lines)


def _cells(row: Row, result: Result) -> list[str]:
    """Both sides, their ratios, the goals and the rest."""
    sides = [
        _cost(values) if side in ("textbook", "jukesep") else f"{side}: {_cost(values)}"
        for side, values in result.sides.items()
    ]
    figures, goals = result.figures, "; ".join(_goal(goal, result) for goal in row.goals)
    ratios = (f"{figures[one]:.2f} x" if one in figures else "" for one in ("speed", "memory"))
    also = "; ".join(filter(None, [*_others(row, result), result.note]))
    return [*["", "", *sides][-2:], *ratios, goals, also]


def _cost(values: Mapping[str, float]) -> str:
    """Seconds and MB of a side."""
    memory = f", {values['megabytes']:,.0f} MB" if "megabytes" in values else ""
    return _seconds(values["seconds"]) + memory


def _goal(goal: Goal, result: Result) -> str:
    value = result.figures.get(goal.figure)
    if value is None:  # of a row that had other goals then
        return f"{goal.aim}: not measured"
    return f"{goal.aim}: {goal.text(value)}, **{goal.verdict(value)}**"


def _others(row: Row, result: Result, besides: Iterable[str] = ("speed", "memory")) -> list[str]:
    """Figures that no goal and no column shows."""
    shown = {goal.figure for goal in row.goals} | set(besides)
    return [
        f"{figure} {value:.3g}{UNITS.get(figure, ' x')}"
        for figure, value in result.figures.items()
        if figure not in shown
    ]


def _missed(rows: Mapping[str, Row], found: Mapping[str, Result], why: Mapping[str, str]) -> str:
    """Each goal that was missed, by how much, and why."""
    lines = []
    for name, row in rows.items():
        for goal in row.goals if name in found else ():
            value = found[name].figures[goal.figure]
            if not goal.met(value):
                text = f"{goal.aim}, found {goal.text(value)}: {goal.verdict(value)}."
                reason = why.get(f"{name}, {goal.figure}", why.get(name, ""))
                lines.append(f"- `{name}`: {text} {reason}".strip())
    return "\n".join(lines) or "None."


def _limit(found: Mapping[str, Result], older: Older) -> str:
    heads = ["row", "processor", "precision", "10^9 FLOPs", "GFLOP/s reached"]
    lines = [[*heads, "GFLOP/s of `torch.mm`", "share"]]
    every = [
        (name, result, kind)
        for name, newest in found.items()
        for result, kind in [
            (newest, newest.kind),
            *((one, f"{one.kind}, older") for one in older.get(name, ())),
        ]
    ]
    for name, result, kind in every:
        if "precision" in result.details:
            flops, limit = result.details["flops"], result.details["limit"]
            *_, ours = result.sides.values()
            rate = flops / ours["seconds"]
            cells = f"{flops / 1e9:,.1f}", f"{rate / 1e9:.1f}", f"{limit / 1e9:.1f}"
            share = f"{100 * rate / limit:.0f} %"
            lines.append([f"`{name}`", kind, result.details["precision"], *cells, share])
    return table(lines) if len(lines) > 1 else MISSING


def _breakdown(result: Result) -> str:
    parts, flops, limit = (result.details[key] for key in ("parts", "flops", "limit"))
    lines = [["part", "textbook", "share", "jukesep", "share", "speed", "of the limit"]]
    before, after = parts["textbook"], parts["jukesep"]
    for part in [*(part for part in before if part not in ("step", "rest")), "rest", "step"]:
        cells = []
        for side in (before, after):
            cells += [f"{1e3 * side[part]:.0f} ms", f"{100 * side[part] / side['step']:.0f} %"]
        # The rest may be shorter than the clock can tell.
        ratio = f"{before[part] / after[part]:.2f} x" if part != "rest" else ""
        reached = f"{100 * flops[part] / after[part] / limit:.0f} %" if part in flops else ""
        lines.append([part, *cells, ratio, reached])
    return table(lines)


def _demo(result: Result) -> str:
    """Seconds of the demo's `dvc repro`, by kind of stage."""
    lines = [["stage", "runs", "seconds", "of it under a progress bar", "the rest, a run"]]
    stages = result.details["stages"]
    keys = ("runs", "seconds", "progress")
    total = {key: sum(one[key] for one in stages.values()) for key in keys}
    for kind, one in {**stages, "all": total}.items():
        rest = (one["seconds"] - one["progress"]) / one["runs"]
        lines.append([kind, *(f"{one[key]:.0f}" for key in keys), f"{rest:.1f}"])
    return table(lines)


def _growth(found: Mapping[str, Result]) -> str:
    texts = []
    for name, (picture, size, what) in GROWTH.items():
        if name not in found:
            texts.append(f"`{name}`: not measured yet.")
            continue
        lines = [[size, "side", "time", "memory"]]
        for side, points in found[name].details["points"].items():
            for x, seconds, megabytes in points:
                memory = f"{megabytes:,.0f} MB" if megabytes else ""
                lines.append([f"{x:,.0f}", side, _seconds(seconds), memory])
        title = f"{what[0].upper()}{what[1:]}, against {size}"
        path = f"{PICTURES.name}/{picture}.svg"
        texts.append(f"{title}:\n\n![{title}]({path})\n\n{table(lines)}")
    return "\n\n".join(texts)


def draw(name: str, result: Result, path: Path) -> None:
    """Time, and memory where it was measured, against the size: one SVG."""
    from matplotlib.ticker import MaxNLocator

    _, size, what = GROWTH[name]
    points = result.details["points"]
    measured = any(memory for line in points.values() for *_, memory in line)
    panels = ["seconds", "MB"] if measured else ["seconds"]
    with figures.picture(path, (3.6 * len(panels), 2.7), STYLE) as figure:
        every = figure.subplots(1, len(panels), squeeze=False)[0]
        for column, (axes, unit) in enumerate(zip(every, panels, strict=True), 1):
            for side, found in points.items():
                x, y = [p[0] for p in found], [p[column] for p in found]
                marker = "s" if side == "textbook" else "o"
                axes.plot(x, y, color=COLOURS[side], marker=marker, label=side)
                if name == "growth-cores":
                    ideal = [y[0] * x[0] / cores for cores in x]
                    axes.plot(x, ideal, color=COLOURS["ideal"], ls="--", label="1 / cores")
            axes.set(xlabel=size, title=unit if measured else f"{unit}, {what}")
            axes.set_ylim(bottom=0)
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.legend()


def _where(found: Mapping[str, Result], older: Older) -> str:
    """Machines and code, each with its rows."""
    places: dict[str, list[str]] = {}
    every = [*found.items(), *((name, one) for name in found for one in older.get(name, ()))]
    for describe in (_machine, _code):
        for name, result in every:
            names = places.setdefault(describe(result), [])
            names += [f"`{name}`"] if f"`{name}`" not in names else []
    minutes = sum(result.took for result in found.values()) / 60
    lines = [f"- {place}: {', '.join(names)}" for place, names in places.items()]
    return "\n".join([*lines, "", f"All rows together took {minutes:.1f} minutes."])


def _machine(result: Result) -> str:
    m = result.machine
    features = ", ".join(m["features"]) or "features not listed"
    return (
        f"{m['processor']}, {m['cores']} cores, {features}, {m['memory_gb']} GB; {m['system']}, "
        f"Python {m['python']}, PyTorch {m['torch']}, NumPy {m['numpy']}, numba {m['numba']}, "
        f"SciPy {m['scipy']}"
    )


def _code(result: Result) -> str:
    changed = ", with changes to that code" if result.code["changed"] else ""
    return f"commit {result.code['commit'] or 'unknown'}{changed}"


def _seconds(value: float) -> str:
    if value < 1:
        return f"{1e3 * value:.3g} ms"
    return f"{value:.2f} s" if value < 100 else f"{value / 60:.1f} min"
