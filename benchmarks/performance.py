"""docs/performance.md and its pictures, from what the rows found."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks.row import Goal, Result, Row
from jukesep.base.files import atomic, write_text

PAGE = Path("docs/performance.md")
PICTURES = Path("docs/performance")
REMARKS = Path(__file__).with_name("remarks.yaml")

# Read on a light page and on a dark one.
COLOURS = {"textbook": "#D98200", "jukesep": "#3388CC", "ideal": "#808080"}
STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "jukesep",
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"),
        "#808080",
    ),
}
GROWTH = {
    "growth-segment": ("segment", "samples of the segment", "a step of stage 1, paper model"),
    "growth-batch": ("batch", "segments of 8,192 samples", "a step of stage 1, paper model"),
    "growth-song": ("song", "seconds of the song", "separation of one stem, mono, paper model"),
    "growth-cores": ("cores", "cores", "evaluation of a stem on four songs, demo model"),
}


def write(rows: Mapping[str, Row], found: Mapping[str, Result], folder: Path = Path()) -> None:
    """The page, and a picture of each growth that was measured, below `folder`."""
    for name in GROWTH:
        if name in found and found[name].details:
            draw(name, found[name], folder / PICTURES / f"{GROWTH[name][0]}.svg")
    write_text(folder / PAGE, page(rows, found, gpu=(folder / "docs/gpu.md").exists()))


def page(rows: Mapping[str, Row], found: Mapping[str, Result], gpu: bool = False) -> str:
    """The text of docs/performance.md; with a link to the GPU's page if it is there."""
    remarks = yaml.safe_load(REMARKS.read_text(encoding="utf-8"))
    gpu_link = " A GPU's figures are in [gpu.md](gpu.md)." if gpu else ""
    sections = [
        "# Speed and memory",
        "Written by `uv run python -m benchmarks`, from `benchmarks/results/rows/`; a row alone\n"
        "by `uv run python -m benchmarks stage1`. Trainings at the paper's size are in\n"
        f"[paper_scale.md](paper_scale.md).{gpu_link}",
        INTRODUCTION,
        "## Rows",
        _rows(rows, found),
        READING,
        "## What falls short",
        _short(rows, found, remarks["short"] or {}),
        "## The arithmetic limit",
        _limit(rows, found),
        "## Where the time of a step goes",
        _breakdown(found.get("breakdown")),
        "## Where the time of the demo goes",
        _demo(found.get("repro")),
        "## How cost grows",
        _growth(found),
        "## Tried and dropped",
        "What gains less than 1.2 x in the whole step is not kept.",
        "\n".join(f"- **{one['what']}**: {one['found']}" for one in remarks["tried"]),
        "## Where this was measured",
        _where(found),
    ]
    return "\n\n".join(section.strip("\n") for section in sections) + "\n"


def line(name: str, row: Row, result: Result) -> str:
    """A row in words, for the terminal."""
    if result.skipped:
        return f"{name}: not measured here: {result.skipped}"
    sides = [
        f"{side} {_seconds(values['seconds'])}"
        + (f", {values['megabytes']:.0f} MB" if "megabytes" in values else "")
        for side, values in result.sides.items()
    ]
    goals = [_goal(goal, result) for goal in row.goals]
    parts = [*sides, *_others(row, result, besides=()), *goals, result.note]
    for side, points in result.details.get("points", {}).items():
        parts.append(
            f"{side} " + ", ".join(f"{x:,.0f}: {_seconds(seconds)}" for x, seconds, _ in points)
        )
    for side, times in result.details.get("parts", {}).items():
        parts.append(f"{side}: " + ", ".join(f"{p} {_seconds(t)}" for p, t in times.items()))
    return f"{name}: {row.what}: " + "; ".join(part for part in parts if part)


def _rows(rows: Mapping[str, Row], found: Mapping[str, Result]) -> str:
    lines = []
    for name, row in rows.items():
        if name in GROWTH or name == "breakdown":
            continue
        result = found.get(name)
        if result is None or result.skipped:
            why = f"not measured here: {result.skipped}" if result else "not measured yet"
            lines.append([f"`{name}`", row.what, "", "", "", "", why, ""])
            continue
        before, ours = ["", "", *(_side(*side) for side in result.sides.items())][-2:]
        ratios = [
            f"{result.figures[figure]:.2f} x" if figure in result.figures else ""
            for figure in ("speed", "memory")
        ]
        goals = "; ".join(_goal(goal, result) for goal in row.goals)
        also = "; ".join([*_others(row, result), *([result.note] if result.note else [])])
        lines.append([f"`{name}`", row.what, before, ours, *ratios, goals, also])
    head = ["row", "what", "textbook", "jukesep", "speed", "memory", "goal", "also"]
    return _table([head, *lines])


def _side(name: str, values: Mapping[str, float]) -> str:
    """Seconds and MB of a side, named unless its column names it."""
    text = _seconds(values["seconds"])
    text += f", {values['megabytes']:,.0f} MB" if "megabytes" in values else ""
    return text if name in ("textbook", "jukesep") else f"{name}: {text}"


def _goal(goal: Goal, result: Result) -> str:
    value = result.figures[goal.figure]
    return f"{goal.aim()}: {goal.text(value)}, **{goal.verdict(value)}**"


def _others(row: Row, result: Result, besides: Iterable[str] = ("speed", "memory")) -> list[str]:
    """Figures that no goal and no column shows."""
    shown = {goal.figure for goal in row.goals} | set(besides)
    unit = {"share of the limit": " %", "SDR in fp32": " dB", "memory": " x", "speed": " x"}
    unit |= {"real time": " x", "first time over reading": " x"}
    return [
        f"{figure} {value:.2f}{unit.get(figure, '')}"
        for figure, value in result.figures.items()
        if figure not in shown
    ]


def _short(rows: Mapping[str, Row], found: Mapping[str, Result], why: Mapping[str, str]) -> str:
    """Each goal that was missed, by how much, and why."""
    lines = []
    for name, row in rows.items():
        result = found.get(name)
        if result is None or result.skipped:
            continue
        missed = [goal for goal in row.goals if not goal.met(result.figures[goal.figure])]
        for goal in missed:
            value = result.figures[goal.figure]
            text = f"- `{name}`: {goal.aim()}, found {goal.text(value)}: {goal.verdict(value)}."
            lines.append(" ".join([text, (why.get(name) or "").strip()]).strip())
    return "\n".join(lines) or "No row does."


def _limit(rows: Mapping[str, Row], found: Mapping[str, Result]) -> str:
    lines = [
        ["row", "precision", "10^9 FLOPs", "GFLOP/s reached", "GFLOP/s of `torch.mm`", "share"]
    ]
    for name, result in found.items():
        details = result.details
        if "limit" not in details or "precision" not in details:
            continue
        *_, ours = result.sides.values()
        rate = details["flops"] / ours["seconds"]
        lines.append(
            [
                f"`{name}`",
                details["precision"],
                f"{details['flops'] / 1e9:,.1f}",
                f"{rate / 1e9:.1f}",
                f"{details['limit'] / 1e9:.1f}",
                f"{100 * rate / details['limit']:.0f} %",
            ]
        )
    return LIMIT + "\n\n" + (_table(lines) if len(lines) > 1 else "Not measured yet.")


def _breakdown(result: Result | None) -> str:
    if result is None or not result.details:
        return "Not measured yet."
    parts, flops, limit = (result.details[key] for key in ("parts", "flops", "limit"))
    lines = [["part", "textbook", "share", "jukesep", "share", "speed", "of the limit"]]
    before, after = parts["textbook"], parts["jukesep"]
    for part in [*(part for part in before if part not in ("step", "rest")), "rest", "step"]:
        reached = f"{100 * flops[part] / after[part] / limit:.0f} %" if part in flops else ""
        # What is left over may be less than what the clock can tell.
        ratio = f"{before[part] / after[part]:.2f} x" if part != "rest" else ""
        cells = [
            f"{1e3 * side[part]:.0f} ms | {100 * side[part] / side['step']:.0f} %"
            for side in (before, after)
        ]
        lines.append([part, *cells, ratio, reached])
    return BREAKDOWN + "\n\n" + _table(lines)


def _demo(result: Result | None) -> str:
    """Seconds of the demo's `dvc repro`, by kind of stage."""
    if result is None or not result.details:
        return "Not measured yet."
    lines = [["stage", "runs", "seconds", "of it under a progress bar", "the rest, a run"]]
    stages = result.details["stages"]
    total = {
        key: sum(one[key] for one in stages.values()) for key in ("runs", "seconds", "progress")
    }
    for kind, one in {**stages, "all": total}.items():
        rest = (one["seconds"] - one["progress"]) / one["runs"]
        cells = f"{one['runs']:.0f}", f"{one['seconds']:.0f}", f"{one['progress']:.0f}"
        lines.append([kind, *cells, f"{rest:.1f}"])
    return DEMO + "\n\n" + _table(lines)


def _growth(found: Mapping[str, Result]) -> str:
    texts = []
    for name, (picture, size, what) in GROWTH.items():
        if name not in found or not found[name].details:
            texts.append(f"`{name}`: not measured yet.")
            continue
        lines = [[size, "side", "time", "memory"]]
        for side, points in found[name].details["points"].items():
            for x, seconds, megabytes in points:
                memory = f"{megabytes:,.0f} MB" if megabytes else ""
                lines.append([f"{x:,.0f}", side, _seconds(seconds), memory])
        title = f"{what[0].upper()}{what[1:]}, against {size}"
        path = f"{PICTURES.name}/{picture}.svg"
        texts.append(f"{title}:\n\n![{title}]({path})\n\n{_table(lines)}")
    return "\n\n".join([GROWN, *texts])


def draw(name: str, result: Result, path: Path) -> None:
    """Time, and memory where it was measured, against the size: one SVG."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    _, size, what = GROWTH[name]
    points = result.details["points"]
    panels = (
        ["seconds", "MB"] if any(p[2] for line in points.values() for p in line) else ["seconds"]
    )
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a reader's own matplotlibrc does not change the pictures
        matplotlib.rcParams.update(STYLE)  # type: ignore[arg-type]
        figure = Figure(figsize=(3.6 * len(panels), 2.7), layout="constrained")
        for axes, unit in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
        ):
            for side, found in points.items():
                x, y = [p[0] for p in found], [p[1 if unit == "seconds" else 2] for p in found]
                marker = "s" if side == "textbook" else "o"
                axes.plot(x, y, color=COLOURS[side], marker=marker, label=side)
                if name == "growth-cores":
                    ideal = [y[0] * x[0] / cores for cores in x]
                    axes.plot(x, ideal, color=COLOURS["ideal"], ls="--", label="1 / cores")
            axes.set(xlabel=size, title=f"{unit}, {what}" if len(panels) == 1 else unit)
            axes.set_ylim(bottom=0)
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.grid(color="#808080", alpha=0.25)
            axes.legend()
        buffer = io.BytesIO()
        figure.savefig(
            buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    with atomic(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def _where(found: Mapping[str, Result]) -> str:
    """Machines and code, each with its rows."""
    machines: dict[str, list[str]] = {}
    codes: dict[str, list[str]] = {}
    for name, result in found.items():
        machines.setdefault(_machine(result.machine), []).append(f"`{name}`")
        codes.setdefault(_code(result.code), []).append(f"`{name}`")
    total = sum(result.took for result in found.values())
    lines = [f"- {machine}: {', '.join(names)}" for machine, names in machines.items()]
    lines += [f"- {code}: {', '.join(names)}" for code, names in codes.items()]
    lines += ["", f"All rows together took {total / 60:.1f} minutes."]
    return "\n".join(lines)


def _machine(machine: Mapping[str, Any]) -> str:
    if not machine:
        return "not said"
    features = ", ".join(machine["features"]) or "features not listed"
    return (
        f"{machine['processor']}, {machine['cores']} cores, {features}, "
        f"{machine['memory_gb']} GB; {machine['system']}, Python {machine['python']}, "
        f"PyTorch {machine['torch']}, NumPy {machine['numpy']}, numba {machine['numba']}, "
        f"SciPy {machine['scipy']}"
    )


def _code(code: Mapping[str, Any]) -> str:
    if not code:
        return "not said"
    changed = ", with changes to jukesep/" if code["changed"] else ""
    return f"commit {code['commit'] or 'unknown'}{changed}"


def _seconds(value: float) -> str:
    if value < 1:
        return f"{1e3 * value:.3g} ms"
    return f"{value:.2f} s" if value < 100 else f"{value / 60:.1f} min"


def _table(lines: list[list[str]]) -> str:
    columns = sum(cell.count(" | ") + 1 for cell in lines[0])
    rows = [lines[0], ["---"] * columns, *lines[1:]]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


INTRODUCTION = """
The same mathematics on the same weights and audio. The textbook form is
[benchmarks/textbook.py](../benchmarks/textbook.py): each layer a convolution, the distance matrix
in full, a one-hot matrix for the codebook's sums, ten STFTs, losses also where a song is
separated. `tests/test_textbook.py` holds that both compute the same. Rows that do not say
otherwise run on one core in float32. The paper model has width 64, depth 8 and 2048 codes; the
demo's has width 32, depth 4 and 512 codes.
"""

READING = """
- **Time**: both sides run in turns in one process, the first turn is not counted, and the medians
  are compared: other programs on the machine slow both. Steps and separations on one core count the
  processor's time, everything else the clock's.
- **Memory**: the peak of a process that runs one side alone, above what it had after the imports;
  for whole commands the peak of the process.
- **speed**: the textbook's time over jukesep's. **memory**: jukesep's peak over the textbook's.
  Where another side than the textbook stands in its column, the cell names it.
- **real time**: seconds of audio in a second.
- **share of the limit**: see [below](#the-arithmetic-limit).
"""

LIMIT = """
FLOPs are counted from the layers (`benchmarks/arithmetic.py`): two for each weight that a value
meets, and two forwards for a backward; what else a step does counts for nothing. The limit is the
rate at which `torch.mm` multiplies matrices of 2048 x 2048 in the same process, in turns with the
row; a row on all cores has a limit of all cores. Chunks of a song are computed with their
context, which counts as nothing too.
""".strip()

GROWN = """
Each point is measured in a process of its own, which runs one side alone. Its time is the
processor's, on one core; the evaluation's is the clock's, on all its cores.
""".strip()

DEMO = """
`dvc repro` in a fresh clone. DVC runs one stage after the other, each a Python of its own. The
rest is what a stage shows no progress for: Python, PyTorch and numba's compiled code come into
memory, DVC compares and keeps files and writes its lock.
""".strip()
BREAKDOWN = """
A step of stage 1 of the paper's model, 1 x 65,536 samples, one core, float32. The parts are run
and timed apart, by the processor's time; "rest" is what the whole step takes
beside them, less than nothing where a part takes longer by itself than within the step.
""".strip()
