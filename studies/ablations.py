"""What each reading of the recipe is worth: writes docs/ablations.md, its table and its picture.

    uv run python -m benchmarks.ablations                  # all of them
    uv run python -m benchmarks.ablations stage1-budget    # one
    uv run python -m benchmarks.ablations --jobs 2         # two experiments at a time, a core each
    uv run python -m benchmarks.ablations --write          # run nothing, write what there is

Every cell is a DVC experiment (`dvc exp show`), run in a folder of its own: a variant under each of
three seeds, which draw the initial weights and the training segments. To keep that affordable they
train two stems, drums and vocals, and end stage 2 at the demo's early checkpoint; everything else
is the demo's. No choice is made here, so nothing is chosen on the test songs that are scored.
"""

from __future__ import annotations

import argparse
import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import experiments
from jukesep.base import params
from jukesep.base.files import atomic, write_text

STEMS = ("drums", "vocals")
SEEDS = (0, 1, 2)
INITS = ("pretrained", "scratch")
FOLDER = Path("docs/ablations")
PAGE = Path("docs/ablations.md")
COLUMNS = ("ablation", "variant", "init", "seed", "songs", *STEMS)
GROUPS = {"seen": "metrics/sdr", "held_out": "metrics/held_out"}


@dataclass(frozen=True)
class Variant:
    """A setting of the recipe: its name in the tables, and the overrides that make it."""

    name: str
    overrides: tuple[str, ...] = ()
    inits: tuple[str, ...] = INITS


@dataclass(frozen=True)
class Ablation:
    """A question, and the variants that answer it beside the default."""

    name: str
    question: str
    variants: tuple[Variant, ...]


@dataclass(frozen=True)
class Cell:
    """The SDR in dB of one variant under one seed, by stem; `songs` is their group."""

    ablation: str
    variant: str
    init: str
    seed: int
    songs: str
    scores: dict[str, float]

    @property
    def mean(self) -> float:
        """Over the stems."""
        return statistics.mean(self.scores.values())


PRETRAINED, SCRATCH = ("pretrained",), ("scratch",)
ABLATIONS = (
    Ablation(
        "stage1-budget",
        "How many steps of stage 1 does each init need? Where does scratch catch up?",
        (
            *(Variant(f"{n} steps", (f"stage1.steps={n}",)) for n in (20, 40, 80)),
            Variant("160 steps"),  # the demo's
            Variant("480 steps", ("stage1.steps=480",)),
        ),
    ),
    Ablation(
        "codebook-init",
        'Do the faults of the published code explain the "about 0" of the paper\'s scratch? Its '
        "codebook starts at zero; on several GPUs it is, besides, never updated.",
        (
            Variant("from data", inits=SCRATCH),
            Variant("zeros", ("stage1.codebook_init=zeros",), SCRATCH),
            Variant(
                "zeros, never updated",
                ("stage1.codebook_init=zeros", "codebook.decay=1.0"),
                SCRATCH,
            ),
        ),
    ),
    Ablation(
        "blend",
        "What does it cost that the published code makes mixture and stem mono by two draws?",
        (
            Variant("shared", inits=PRETRAINED),
            Variant("independent", ("stage2.blend=independent",), PRETRAINED),
        ),
    ),
    Ablation(
        "stage2-init",
        "What should the mixture's encoder E2 start from?",
        (
            Variant("random", inits=PRETRAINED),
            Variant("jukebox", ("stage2.init=jukebox",), PRETRAINED),
            Variant("stage1", ("stage2.init=stage1",), PRETRAINED),
        ),
    ),
    Ablation(
        "chunking",
        "What do chunks without context cost at separation?",
        (
            Variant("exact", inits=PRETRAINED),
            Variant(
                "hard, 4096 samples",
                ("separation.chunking=hard", "separation.chunk=4096"),
                PRETRAINED,
            ),
        ),
    ),
    Ablation(
        "bottleneck",
        "Does quantising E2's latents cost anything at separation?",
        (
            Variant("quantise", inits=PRETRAINED),
            Variant("bypass", ("separation.bottleneck=bypass",), PRETRAINED),
        ),
    ),
)


def main() -> None:
    """Run what is not done, then write the page with all ablations that are."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    names = [ablation.name for ablation in ABLATIONS]
    parser.add_argument("ablations", nargs="*", default=[], help=", ".join(names))
    parser.add_argument("--jobs", type=int, default=1, help="experiments at a time")
    parser.add_argument("--write", action="store_true", help="write the page alone")
    options = parser.parse_args()
    if unknown := set(options.ablations) - set(names):
        parser.error(f"no such ablation: {min(unknown)}. There are: {', '.join(names)}")
    step = params.load().stage2.checkpoints[0]
    wanted = {
        _experiment(ablation, variant, seed): _overrides(variant, seed, step)
        for ablation in ABLATIONS
        for variant in ablation.variants
        for seed in SEEDS
        if ablation.name in (options.ablations or names)
    }
    if not options.write:
        experiments.run(wanted, options.jobs)
    finished = [
        ablation
        for ablation in ABLATIONS
        if all(
            experiments.done(_experiment(ablation, variant, seed), _overrides(variant, seed, step))
            for variant in ablation.variants
            for seed in SEEDS
        )
    ]
    cells = [cell for ablation in finished for cell in _cells(ablation)]
    write_text(FOLDER / "scores.csv", table(cells))
    write_text(PAGE, page(cells, params.load().stage1.steps, step))
    picture = FOLDER / "stage1-budget.png"
    if any(ablation.name == "stage1-budget" for ablation in finished):
        draw_budgets(cells, picture)
    else:
        picture.unlink(missing_ok=True)
    print(PAGE)


def _experiment(ablation: Ablation, variant: Variant, seed: int) -> str:
    """Name of the DVC experiment. The defaults of all ablations are one and the same."""
    if not variant.overrides:
        return f"ablation-default-{seed}"
    words = "".join(letter if letter.isalnum() else "-" for letter in variant.name)
    return f"ablation-{ablation.name}-{'-'.join(filter(None, words.split('-')))}-{seed}"


def _overrides(variant: Variant, seed: int, step: int) -> list[str]:
    # The defaults are shared, and so run with both inits.
    inits = variant.inits if variant.overrides else INITS
    return [
        f"stems=[{','.join(STEMS)}]",
        f"inits=[{','.join(inits)}]",
        f"seed={seed}",
        f"stage2.steps={step}",
        f"stage2.checkpoints=[{step}]",
        *variant.overrides,
    ]


def _cells(ablation: Ablation) -> list[Cell]:
    return [
        Cell(
            ablation.name,
            variant.name,
            init,
            seed,
            songs,
            experiments.read(_experiment(ablation, variant, seed), f"{folder}/{init}_late.json"),
        )
        for variant in ablation.variants
        for init in variant.inits
        for seed in SEEDS
        for songs, folder in GROUPS.items()
    ]


def table(cells: Sequence[Cell]) -> str:
    """Every number, as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for c in cells:
        scores = [c.scores[stem] for stem in STEMS]
        writer.writerow([c.ablation, c.variant, c.init, c.seed, c.songs, *scores])
    return text.getvalue()


def verdict(differences: Sequence[float]) -> str:
    """What paired differences in dB, one a seed, allow to say."""
    mean, low, high = statistics.mean(differences), min(differences), max(differences)
    spread = f"{mean:+.2f} dB ({low:+.2f} to {high:+.2f})"
    if low > 0:
        return f"better under every seed: {spread}"
    if high < 0:
        return f"worse under every seed: {spread}"
    return f"no consistent difference: {spread}"


def page(cells: Sequence[Cell], steps: int, step: int) -> str:
    """docs/ablations.md: each question, and the table and conclusion of those that `cells` answer.

    `steps` are those of stage 1, `step` the last of stage 2.
    """
    answered = {cell.ablation for cell in cells}
    lines = [
        "# Ablations",
        "",
        "<!-- Written by `uv run python -m benchmarks.ablations`. -->",
        "",
        "Each reading of the recipe against the default, on the demo's songs. The numbers are the",
        f"paper's SDR in dB, the mean of {' and '.join(STEMS)} over the test songs of instruments",
        f"heard in training, under seeds {', '.join(map(str, SEEDS))}; in brackets the same on",
        "songs of held-out instruments, mean of the seeds. Where nothing else is said, stage 1 has",
        f"{steps} steps; stage 2 ends at step {step}, so that these numbers are lower than in",
        "[results.md](results.md). A difference is taken seed by seed, and called one only if all",
        "seeds agree in its sign; three seeds cannot show a small one.",
        "[ablations/scores.csv](ablations/scores.csv) has every number by stem.",
        "",
        "These are the demo's small models on synthetic songs. They say which way a choice pushes,",
        "not how far it would at the paper's scale.",
    ]
    for ablation in ABLATIONS:
        lines += ["", f"## {ablation.name}", "", ablation.question, ""]
        lines += [f"    uv run python -m benchmarks.ablations {ablation.name}", ""]
        if ablation.name not in answered:
            lines.append("Not run yet on this code.")
            continue
        lines += [_row(["variant", "init", *(f"seed {s}" for s in SEEDS), "mean", "held out"])]
        lines += [_row(["---"] * (len(SEEDS) + 4))]
        for variant in ablation.variants:
            for init in variant.inits:
                values = _means(cells, ablation, variant, init, "seen")
                held_out = statistics.mean(_means(cells, ablation, variant, init, "held_out"))
                cell = [_db(v) for v in [*values, statistics.mean(values)]]
                lines.append(_row([variant.name, init, *cell, f"({_db(held_out)})"]))
        lines += ["", *_conclusions(ablation, cells)]
        if ablation.name == "stage1-budget":
            lines += ["", "![SDR by steps of stage 1](ablations/stage1-budget.png)"]
    return "\n".join([*lines, ""])


def _conclusions(ablation: Ablation, cells: Sequence[Cell]) -> list[str]:
    """In plain words: what differs from the first variant; for the budgets, what pretraining adds.

    A list, one line a comparison.
    """
    lines = []
    if ablation.name == "stage1-budget":
        for variant in ablation.variants:
            pretrained, scratch = (_means(cells, ablation, variant, i, "seen") for i in INITS)
            gains = [a - b for a, b in zip(pretrained, scratch, strict=True)]
            lines.append(f"- {variant.name}: pretrained against scratch, {verdict(gains)}.")
        return lines
    default, *others = ablation.variants
    for variant in others:
        for init in variant.inits:
            before = _means(cells, ablation, default, init, "seen")
            after = _means(cells, ablation, variant, init, "seen")
            differences = [a - b for a, b in zip(after, before, strict=True)]
            lines.append(
                f"- {variant.name} against {default.name}, {init}: {verdict(differences)}."
            )
    return lines


def _means(
    cells: Sequence[Cell], ablation: Ablation, variant: Variant, init: str, songs: str
) -> list[float]:
    """The mean over the stems, one for each seed."""
    key = (ablation.name, variant.name, init, songs)
    return [c.mean for c in cells if (c.ablation, c.variant, c.init, c.songs) == key]


def draw_budgets(cells: Sequence[Cell], path: Path) -> None:
    """SDR by steps of stage 1 for both inits: the mean over the seeds, and the spread as a band."""
    import matplotlib

    from jukesep.report.figures import COLOURS, MARKERS, STYLE

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.5, 3.4), layout="constrained")
        axes = figure.subplots()
        budgets = next(ablation for ablation in ABLATIONS if ablation.name == "stage1-budget")
        steps = [int(variant.name.split()[0]) for variant in budgets.variants]
        for init in INITS:
            seeds = [_means(cells, budgets, v, init, "seen") for v in budgets.variants]
            means = [statistics.mean(values) for values in seeds]
            axes.plot(steps, means, color=COLOURS[init], marker=MARKERS[init], label=init)
            low, high = [min(values) for values in seeds], [max(values) for values in seeds]
            axes.fill_between(steps, low, high, color=COLOURS[init], alpha=0.2, linewidth=0)
        axes.set_xscale("log")
        axes.set_xticks(steps, [str(n) for n in steps])
        axes.minorticks_off()
        axes.set_xlabel("steps of stage 1")
        axes.set_ylabel(f"SDR, mean of {' and '.join(STEMS)} (dB)")
        axes.set_title("What transfer saves: bands span three seeds", loc="left")
        axes.legend()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    with atomic(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _db(value: float) -> str:
    return f"{value:.2f}"


if __name__ == "__main__":
    main()
