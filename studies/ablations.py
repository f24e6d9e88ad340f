"""Compare other readings of the recipe with the default: docs/ablations.md.

    uv run python -m studies.ablations            # all of them; hours
    uv run python -m studies.ablations blend      # one
    uv run python -m studies.ablations --write    # run nothing, write the page

Each variant is a file of conf/ablation/, and each cell a DVC experiment, which runs alone too:

    uv run dvc exp run --temp -S ablation=hard_chunks -S seed=1

Seeds draw the initial weights and the training segments. To keep that affordable the experiments
train two stems, and end stage 2 at the demo's early checkpoint; everything else is the demo's. No
choice is made here, so nothing is chosen on the test songs that are scored.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from benchmarks.markdown import fill, table
from jukesep.base import params
from jukesep.base.errors import reported
from jukesep.base.files import write_text
from jukesep.report.figures import COLOURS, MARKERS, picture
from studies import experiments, records

SEEDS = (0, 1, 2)
INITS = ("pretrained", "scratch")
FOLDER = Path("docs/ablations")
SCORES, PICTURE = FOLDER / "scores.csv", FOLDER / "stage1-budget.png"
PAGE = Path("docs/ablations.md")


@dataclass(frozen=True)
class Ablation:
    """A question, and the variants that answer it: name in the tables -> file of conf/ablation/.

    The first variant is what the others are compared with.
    """

    name: str
    question: str
    variants: dict[str, str]
    inits: tuple[str, ...] = ("pretrained",)


@dataclass(frozen=True)
class Cell:
    """The SDR in dB of one variant under one seed; `songs` is their group."""

    ablation: str
    variant: str
    init: str
    seed: int
    songs: str
    drums: float
    vocals: float
    commit: str

    @property
    def mean(self) -> float:
        """Over the stems."""
        return statistics.mean((self.drums, self.vocals))


BUDGET = "stage1-budget"
ABLATIONS = (
    Ablation(
        BUDGET,
        "How many steps of stage 1 does each init need? Where does scratch catch up?",
        {
            **{f"{n} steps": f"stage1_steps_{n}" for n in (20, 40)},
            "160 steps": "default",
            "480 steps": "stage1_steps_480",
        },
        INITS,
    ),
    Ablation(
        "codebook-init",
        'Do the faults of the published code explain the "about 0" of the paper\'s scratch? Its '
        "codebook starts at zero; on several GPUs it is also never updated.",
        {
            "from data": "default",
            "zeros": "codebook_zeros",
            "zeros, never updated": "codebook_frozen",
        },
        ("scratch",),
    ),
    Ablation(
        "blend",
        "What does it cost that the published code makes mixture and stem mono by two draws?",
        {"shared": "default", "independent": "independent_blend"},
    ),
    Ablation(
        "stage2-init",
        "What should the mixture's encoder E2 start from?",
        {"random": "default", "jukebox": "stage2_init_jukebox", "stage1": "stage2_init_stage1"},
    ),
    Ablation(
        "chunking",
        "What do chunks without context cost at separation?",
        {"exact": "default", "hard, 4096 samples": "hard_chunks"},
    ),
    Ablation(
        "bottleneck",
        "Does quantising E2's latents cost anything at separation?",
        {"quantise": "default", "bypass": "no_bottleneck", "soft": "soft_bottleneck"},
    ),
    Ablation(
        "conditioning",
        "What is it worth to scale E2's input, and to standardise the latents that it learns?",
        {"both": "default", "neither": "no_conditioning", "input alone": "no_standardise"},
    ),
    Ablation(
        "segments",
        "What should a step of stage 2 hold, for the same audio in all?",
        {
            "one segment of 4096": "default",
            "two segments of 4096": "batch_two",
            "one segment of 8192": "segment_8192",
        },
    ),
    Ablation(
        "rate",
        "Should the learning rate of stage 2 decay further?",
        {"to 5 %": "default", "to 0.5 %": "rate_tail"},
    ),
    Ablation(
        "context",
        "Does a wider receptive field pay?",
        {"depth 4": "default", "depth 5": "depth_5"},
    ),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is not done, keep the scores, write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    names = [ablation.name for ablation in ABLATIONS]
    parser.add_argument("ablations", nargs="*", default=[], help=", ".join(names))
    parser.add_argument("--write", action="store_true", help="run nothing, write the page")
    options = parser.parse_args(arguments)
    if unknown := set(options.ablations) - set(names):
        parser.error(f"no such ablation: {min(unknown)}. There are: {', '.join(names)}")
    if options.write:
        records.require(SCORES)
    kept = load()
    if not options.write:
        for ablation in ABLATIONS:
            if ablation.name in (options.ablations or names):
                kept = [
                    *(cell for cell in kept if cell.ablation != ablation.name),
                    *run(ablation, kept),
                ]
                kept.sort(key=lambda cell: names.index(cell.ablation))
                write_text(SCORES, records.text(Cell, kept))
    write_text(PAGE, page(kept))
    draw(kept, PICTURE)
    print(PAGE)


def run(ablation: Ablation, kept: Sequence[Cell]) -> list[Cell]:
    """The scores of an ablation: runs the experiments that have none of today's code in `kept`."""
    cells = []
    for variant, file in ablation.variants.items():
        for seed in SEEDS:
            found = [
                replace(cell, ablation=ablation.name, variant=variant)
                for cell in kept
                if (_file(cell), cell.seed) == (file, seed) and experiments.unchanged(cell.commit)
            ]
            known = {(cell.init, cell.songs): cell for cell in found}
            wanted = [(init, songs) for init in ablation.inits for songs in experiments.SONGS]
            name = f"ablation-{file}-{seed}"
            if any(key not in known for key in wanted):
                experiments.run(name, [f"ablation={file}", f"seed={seed}"])
                known = {}
            for init, songs in wanted:
                cell = known.get((init, songs))
                if cell is None:
                    scores = experiments.scores(songs, f"{init}_late", name)
                    about = ablation.name, variant, init, seed, songs
                    dbs = scores["drums"], scores["vocals"]
                    cell = Cell(*about, *dbs, experiments.commit())
                cells.append(cell)
    return cells


def _file(cell: Cell) -> str | None:
    """The file of conf/ablation/ that a cell was run with: ablations share the default's."""
    return next(
        (one.variants.get(cell.variant) for one in ABLATIONS if one.name == cell.ablation), None
    )


def load(path: Path = SCORES) -> list[Cell]:
    """The scores kept so far."""
    return records.load(Cell, path)


def verdict(differences: Sequence[float]) -> str:
    """What paired differences in dB, one a seed, allow to say."""
    if len(differences) == 1:
        return f"one seed only: {differences[0]:+.2f} dB"
    mean, low, high = statistics.mean(differences), min(differences), max(differences)
    spread = f"{mean:+.2f} dB ({low:+.2f} to {high:+.2f})"
    if low > 0:
        return f"better under every seed: {spread}"
    if high < 0:
        return f"worse under every seed: {spread}"
    return f"no consistent difference: {spread}"


def page(cells: Sequence[Cell]) -> str:
    """docs/ablations.md: each question, with a table and a conclusion where it was run."""
    recipe = yaml.safe_load(params.compose(["ablation=default"]))
    commits = ", ".join(sorted({cell.commit for cell in cells})) or "none"
    parts = []
    for ablation in ABLATIONS:
        mine = [cell for cell in cells if cell.ablation == ablation.name]
        parts += [f"## {ablation.name}", ablation.question]
        parts.append(f"    uv run python -m studies.ablations {ablation.name}")
        if missing := [one for one in ablation.variants if one not in {c.variant for c in mine}]:
            parts.append(f"Not run yet: {', '.join(missing)}.")
        if not mine:
            continue
        lines = [["variant", "init", *(f"seed {s}" for s in SEEDS), "mean", "held out"]]
        for variant in _run_variants(ablation, mine):
            for init in ablation.inits:
                values = means(mine, variant, init)
                held_out = statistics.mean(means(mine, variant, init, "held_out"))
                numbers = [f"{value:.2f}" for value in (*values, statistics.mean(values))]
                lines.append([variant, init, *numbers, f"({held_out:.2f})"])
        parts += [table(lines), "\n".join(conclusions(ablation, mine))]
        if ablation.name == BUDGET:
            parts.append(f"![SDR by steps of stage 1]({FOLDER.name}/{PICTURE.name})")
    return fill(
        "ablations",
        experiments.PAGES,
        steps=str(recipe["stage1"]["steps"]),
        step=str(recipe["stage2"]["steps"]),
        commits=commits,
        ablations="\n\n".join(parts),
    )


def _run_variants(ablation: Ablation, cells: Sequence[Cell]) -> list[str]:
    there = {cell.variant for cell in cells}
    return [variant for variant in ablation.variants if variant in there]


def conclusions(ablation: Ablation, cells: Sequence[Cell]) -> list[str]:
    """A line for each comparison: with the first variant; of the inits, for the budgets."""
    first, *others = _run_variants(ablation, cells)
    lines = []
    if ablation.name == BUDGET:
        for variant in (first, *others):
            found = _compare(cells, (variant, "pretrained"), (variant, "scratch"))
            lines.append(f"- {variant}: pretrained against scratch, {found}.")
        return lines
    for variant in others:
        for init in ablation.inits:
            found = _compare(cells, (variant, init), (first, init))
            lines.append(f"- {variant} against {first}, {init}: {found}.")
    return lines


def _compare(cells: Sequence[Cell], one: tuple[str, str], other: tuple[str, str]) -> str:
    pairs = zip(means(cells, *one), means(cells, *other), strict=True)
    return verdict([after - before for after, before in pairs])


def means(cells: Sequence[Cell], variant: str, init: str, songs: str = "seen") -> list[float]:
    """The mean over the stems, one for each seed."""
    return [c.mean for c in cells if (c.variant, c.init, c.songs) == (variant, init, songs)]


def draw(cells: Sequence[Cell], path: Path) -> None:
    """SDR by steps of stage 1 for both inits: the mean over the seeds, and the spread as a band."""
    cells = [cell for cell in cells if cell.ablation == BUDGET]
    variants = list(dict.fromkeys(cell.variant for cell in cells))
    steps = [int(variant.split()[0]) for variant in variants]
    if not steps:
        path.unlink(missing_ok=True)
        return
    with picture(path, (5.5, 3.4)) as figure:
        axes = figure.subplots()
        for init in INITS:
            seeds = [means(cells, variant, init) for variant in variants]
            middle = [statistics.mean(values) for values in seeds]
            axes.plot(steps, middle, color=COLOURS[init], marker=MARKERS[init], label=init)
            low, high = [min(values) for values in seeds], [max(values) for values in seeds]
            axes.fill_between(steps, low, high, color=COLOURS[init], alpha=0.2, linewidth=0)
        axes.set_xscale("log")
        axes.set_xticks(steps, [str(n) for n in steps])
        axes.minorticks_off()
        axes.set_xlabel("steps of stage 1")
        axes.set_ylabel("SDR, mean of drums and vocals (dB)")
        axes.set_title("What transfer saves: bands span three seeds", loc="left")
        axes.legend()


if __name__ == "__main__":
    with reported():
        main()
