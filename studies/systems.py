"""Where the paper's method stands: every system on the same songs, docs/systems.md.

    uv run python -m studies.systems             # run what is missing, measure, write; hours
    uv run python -m studies.systems --budgets 1 # only these; commit its scores.csv, and resume
    uv run python -m studies.systems --measure   # the costs alone; minutes, on a quiet machine
    uv run python -m studies.systems --write     # run nothing, write the page from what is kept

Each run is a DVC experiment that trains all peers and our pretrained models, at a share of the
demo's steps and under a seed. The demo's steps of a peer take about the processor time of our
pretraining and both stages of four stems. No choice is made here: the recipes were chosen on
validation songs.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import yaml

from benchmarks.markdown import fill, table
from jukesep.base import params
from jukesep.base.errors import UserError, reported
from jukesep.base.files import write_text
from jukesep.peers.common import registry
from jukesep.report import readme
from jukesep.report.figures import picture
from jukesep.report.others import LABELS
from jukesep.songs.manifest import STEMS
from studies import experiments, records, spleeter, systems_costs
from studies.systems_costs import Cost

BUDGETS = (0.25, 1.0)
SEEDS = (0, 1)
FOLDER = Path("docs/systems")
SCORES, COSTS, PICTURE = FOLDER / "scores.csv", FOLDER / "costs.csv", FOLDER / "compute.png"
PAGE = Path("docs/systems.md")
PLAIN, REFINED, EQUALISER = "pretrained_late", "refined", "static_equaliser"
OURS = (PLAIN, REFINED)
PEERS = ("hdemucs", "conv_tasnet", "demucs", "wave_unet", "open_unmix", "open_unmix_wiener")
CONTROL = "control"
TRAINED = (*OURS, *PEERS, CONTROL)
UNTRAINED = (EQUALISER, "scaled_mixture", "mixture", "ideal_ratio_mask")
NAMES = {**LABELS, PLAIN: "jukesep", REFINED: "jukesep, refined"}
PARTS = (*STEMS, "total")
LIMIT = 0.3  # dB; smaller differences say nothing, with six songs a group and two seeds


@dataclass(frozen=True)
class Run:
    """One experiment: a share of the demo's steps, and a seed."""

    budget: float
    seed: int

    @property
    def name(self) -> str:
        """Of the experiment."""
        return f"systems-{self.budget:g}x-seed-{self.seed}".replace(".", "_")

    def overrides(self, peers: Iterable[str] = registry.NAMES) -> list[str]:
        """What differs from the defaults of conf/, with these peers."""
        chosen = f"peers=[{','.join(peers) or 'none'}]"
        base = yaml.safe_load(params.compose([chosen]))
        steps = {section: base[section]["steps"] for section in ("pretrain", "stage1", "stage2")}
        steps |= {f"peers.{name}": recipe["steps"] for name, recipe in base["peers"].items()}
        scaled = {name: round(self.budget * count) for name, count in steps.items()}
        checkpoints = [round(self.budget * step) for step in base["stage2"]["checkpoints"]]
        return [
            chosen,
            "inits=[pretrained]",
            "evaluate.audio=false",
            f"seed={self.seed}",
            *(f"{name}.steps={count}" for name, count in scaled.items()),
            f"stage2.checkpoints=[{','.join(map(str, checkpoints))}]",
        ]


RUNS = (*(Run(1.0, seed) for seed in SEEDS), *(Run(one, 0) for one in BUDGETS if one != 1.0))


@dataclass(frozen=True)
class Score:
    """The paper's SDR in dB of a system in a run, the means over a group of test songs."""

    system: str
    budget: float
    seed: int
    songs: str
    drums: float
    bass: float
    other: float
    vocals: float
    total: float
    commit: str


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, measure, keep the results, write the page and the README's table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--measure", action="store_true", help="measure the costs alone")
    parser.add_argument("--write", action="store_true", help="run nothing, write the page")
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS, choices=BUDGETS)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, choices=SEEDS)
    options = parser.parse_args(arguments)
    if options.write:
        for path in (SCORES, COSTS, spleeter.SCORES):
            records.require(path)
    if not options.write and not options.measure:
        for run in RUNS:
            if run.budget in options.budgets and run.seed in options.seeds:
                _run(run)
    if not options.write:
        write_text(COSTS, records.text(Cost, systems_costs.measure()))
    found, costs = load_scores(), load_costs()
    draw(found, costs, PICTURE)
    write_text(PAGE, page(found, costs))
    values = params.load().model_dump(mode="json")
    write_text(readme.README, readme.updated(readme.README.read_text(encoding="utf-8"), values))
    print(f"{PAGE}, and the table of {readme.README}")


def _run(run: Run) -> None:
    """Run what has no kept scores of today's code, and keep its scores. Older ones are dropped."""
    found = _current()
    kept = {one.system: one.commit for one in found if _key(one) == _key(run)}
    missing = [system for system in (*TRAINED, *UNTRAINED) if system not in kept]
    if kept:
        commits = ", ".join(sorted(set(kept.values())))
        print(f"{run.name}: {len(kept)} systems have scores of today's code (commit {commits})")
    if not missing:
        return
    wanted = set(map(_peer, missing))
    experiments.run(run.name, run.overrides(name for name in registry.NAMES if name in wanted))
    rest = [one for one in _current() if _key(one) != _key(run) or one.system not in missing]
    write_text(SCORES, records.text(Score, [*rest, *scores(run, missing)]))


def _current() -> list[Score]:
    """The kept scores of today's code; read when needed, since another run may have added some."""
    return [
        one for one in load_scores(SCORES) if experiments.unchanged(one.commit, _peer(one.system))
    ]


def _key(run: Run | Score) -> tuple[float, int]:
    return run.budget, run.seed


def _peer(system: str) -> str | None:
    """The peer whose weights a system uses: open_unmix for open_unmix_wiener; None for ours."""
    return next((name for name in registry.NAMES if system.startswith(name)), None)


def scores(run: Run, systems: Iterable[str]) -> list[Score]:
    """What an experiment that has run says of systems."""
    found = []
    for songs in experiments.SONGS:
        for system in systems:
            said = experiments.scores(songs, system, run.name)
            key = {"system": system, "songs": songs, "commit": experiments.commit()}
            numbers = {part: said[part] for part in PARTS}
            found.append(Score(budget=run.budget, seed=run.seed, **key, **numbers))  # type: ignore[arg-type]
    return found


def load_scores(path: Path = SCORES) -> list[Score]:
    """The scores kept so far."""
    return records.load(Score, path)


def load_costs(path: Path = COSTS) -> dict[str, Cost]:
    """The costs kept: system -> cost."""
    return {cost.system: cost for cost in records.load(Cost, path)}


def page(found: Sequence[Score], costs: Mapping[str, Cost]) -> str:
    """docs/systems.md."""
    if not found or not costs:
        raise UserError(f"{FOLDER}: no results yet. Run `uv run python -m studies.systems`.")
    at = {(one.system, one.budget, one.seed, one.songs): one for one in found}
    whole = {songs: _totals(at, 1.0, 0, songs) for songs in experiments.SONGS}
    return fill(
        "systems",
        experiments.PAGES,
        commits=", ".join(sorted({one.commit for one in found})),
        processor=next(iter(costs.values())).processor,
        costs_commit=next(iter(costs.values())).commit,
        verdict="\n".join(f"- {line}" for line in verdict(whole, at)),
        seen=_table(at, costs, "seen"),
        held_out=_table(at, costs, "held_out"),
        seeds=_seeds(at),
        compute=_compute(at),
        runs=_runs(at),
        picture=f"{FOLDER.name}/{PICTURE.name}",
        spleeter=spleeter.table(records.load(spleeter.Score, spleeter.SCORES)),
    )


Scores = Mapping[tuple[str, float, int, str], Score]


def _totals(at: Scores, budget: float, seed: int, songs: str) -> dict[str, float]:
    return {system: one.total for (system, *key), one in at.items() if key == [budget, seed, songs]}


def verdict(whole: Mapping[str, Mapping[str, float]], at: Scores) -> list[str]:
    """What the numbers say, in sentences."""
    seen, held_out = whole["seen"], whole["held_out"]
    plain, refined, floor = seen[PLAIN], seen[REFINED], seen[EQUALISER]
    rivals = {name: seen[name] for name in PEERS}
    networks = {name.removesuffix("_wiener") for name in PEERS}
    above = [name for name in PEERS if _above(at, name)]
    names = "; ".join(NAMES[name] for name in above)
    best = max(rivals, key=lambda name: rivals[name])
    lines = [
        f"At the demo's compute, the method scores {plain:.2f} dB on the songs of instruments "
        f"heard in training: {_over(plain - floor)} a static equaliser, one gain per frequency "
        f"({floor:.2f} dB). Wiener filters bring it to {refined:.2f} dB.",
        f"Of {len(networks)} other networks, trained on the same songs for about the same "
        f"processor time, {len({name.removesuffix('_wiener') for name in above})} score at least "
        f"{LIMIT} dB more than its plain stems under every seed"
        f"{f' ({names})' if names else ''}. The best one, "
        f"{NAMES[best]}, scores {rivals[best]:.2f} dB: {_over(rivals[best] - plain)} the plain "
        "stems.",
        f"A plain mask network on spectrograms, our control, scores {seen[CONTROL]:.2f} dB.",
        f"On songs of held-out instruments the method scores {held_out[PLAIN]:.2f} dB, refined "
        f"{held_out[REFINED]:.2f} dB, the static equaliser {held_out[EQUALISER]:.2f} dB. All "
        f"trained systems lie between {min(held_out[n] for n in TRAINED):.2f} and "
        f"{max(held_out[n] for n in TRAINED):.2f} dB.",
    ]
    stems = [
        stem
        for stem in STEMS
        if getattr(at[PLAIN, 1.0, 0, "seen"], stem) < getattr(at[EQUALISER, 1.0, 0, "seen"], stem)
    ]
    if stems:
        lines.append(f"On {' and '.join(stems)} its plain stems score less than the equaliser.")
    return lines


def _above(at: Scores, name: str) -> bool:
    """Whether a system scores LIMIT more than our plain stems under every seed, on seen songs."""
    return all(
        one.total >= at[PLAIN, budget, seed, songs].total + LIMIT
        for (system, budget, seed, songs), one in at.items()
        if (system, budget, songs) == (name, 1.0, "seen")
    )


def _over(difference: float) -> str:
    return f"{abs(difference):.2f} dB {'above' if difference >= 0 else 'below'}"


def _table(at: Scores, costs: Mapping[str, Cost], songs: str) -> str:
    """All systems at the demo's budget, the best last but for the oracle."""
    totals = _totals(at, 1.0, 0, songs)
    order = sorted(totals, key=lambda name: totals[name])
    lines = [
        ["system", "trained (CPU s)", "parameters", "audio s per CPU s", *STEMS, "**mean**"],
    ]
    for name in order:
        one, cost = at[name, 1.0, 0, songs], costs.get(name)
        about = ["0", "0", "-"] if name in UNTRAINED else ["not measured"] * 3
        if cost:
            about = [f"{cost.training_seconds:.0f}", _size(cost.parameters), f"{cost.speed:.0f}"]
        label = f"**{NAMES[name]}**" if name in OURS else NAMES[name]
        values = [f"{getattr(one, stem):.2f}" for stem in STEMS]
        lines.append([label, *about, *values, f"**{one.total:.2f}**"])
    return table(lines)


def _size(parameters: int) -> str:
    return f"{parameters / 1e6:.2f} M" if parameters >= 1e5 else f"{parameters:,}"


def _seeds(at: Scores) -> str:
    lines = [["system", *(f"seed {seed}, {songs.replace('_', '-')}"
                          for songs in experiments.SONGS for seed in SEEDS)]]  # fmt: skip
    for name in TRAINED:
        cells = [at.get((name, 1.0, seed, songs)) for songs in experiments.SONGS for seed in SEEDS]
        lines.append([NAMES[name], *(f"{one.total:.2f}" if one else "not run" for one in cells)])
    return table(lines)


def _runs(at: Scores) -> str:
    """Which runs there are, and which not yet."""
    there = {(one.budget, one.seed) for one in at.values()}
    missing = [run for run in RUNS if _key(run) not in there]
    if not missing:
        return ""
    names = [f"{run.budget:g} times the steps under seed {run.seed}" for run in missing]
    return f"\n**Not run yet**: {'; '.join(names)}.\n"


def _compute(at: Scores) -> str:
    lines = [["system", *(f"{budget:g} times, {songs.replace('_', '-')}"
                          for songs in experiments.SONGS for budget in BUDGETS)]]  # fmt: skip
    for name in TRAINED:
        cells = [at.get((name, one, 0, songs)) for songs in experiments.SONGS for one in BUDGETS]
        lines.append([NAMES[name], *(f"{one.total:.2f}" if one else "not run" for one in cells)])
    return table(lines)


COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = "osD^v<>Px"
SECONDS = (30, 45, 60, 90, 120, 180)  # on the axis of the picture


def draw(found: Iterable[Score], costs: Mapping[str, Cost], path: Path) -> None:
    """SDR against the processor time of training, for both groups of songs."""
    found = [one for one in found if one.seed == 0]
    with picture(path, (9.5, 4.2), dpi=110) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        titles = {"seen": "instruments heard in training", "held_out": "held-out instruments"}
        for axes, (songs, title) in zip(panels, titles.items(), strict=True):
            for name, colour, marker in zip(TRAINED, cycle(COLOURS), cycle(MARKERS), strict=False):
                if name not in costs:
                    continue
                mine = sorted(
                    (one.budget * costs[name].training_seconds, one.total)
                    for one in found
                    if (one.system, one.songs) == (name, songs)
                )
                axes.plot(
                    *zip(*mine, strict=True), color=colour, marker=marker, label=NAMES[name],
                    lw=2.4 if name in OURS else 1.2, ls="-" if name in OURS else "--",
                )  # fmt: skip
            for name, dash in ((EQUALISER, "-."), ("scaled_mixture", ":")):
                level = statistics.mean(
                    one.total for one in found if (one.system, one.songs) == (name, songs)
                )
                axes.axhline(level, color="#555555", ls=dash, lw=1, label=NAMES[name])
            axes.set_xscale("log")
            axes.set_xlim(25, 220)
            axes.set_xticks(SECONDS, [str(seconds) for seconds in SECONDS])
            axes.minorticks_off()
            axes.set_title(title, loc="left")
            axes.set_xlabel("processor time of training (s)")
        panels[0].set_ylabel("SDR, mean of songs and stems (dB)")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center")


if __name__ == "__main__":
    with reported():
        main()
