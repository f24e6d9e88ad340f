"""Repeat the committed experiment under other seeds: docs/seeds.md.

    uv run python -m studies.seeds            # seeds 1 and 2 beside the workspace's
    uv run python -m studies.seeds --write    # run nothing, write the page from docs/seeds.csv

Each seed is a DVC experiment, which runs alone too: `uv run dvc exp run --temp -S seed=1`. A seed
draws the initial weights and the training segments, of pretraining too; the songs stay the same.
"""

from __future__ import annotations

import argparse
import csv
import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.markdown import fill, table
from jukesep.base import params
from jukesep.base.errors import reported
from jukesep.base.files import write_text
from jukesep.report.others import LABELS, REFINED
from jukesep.songs.manifest import STEMS
from studies import experiments, records
from studies.experiments import Scores

SCORES, PAGE = Path("docs/seeds.csv"), Path("docs/seeds.md")
EARLY, LATE, SCRATCH = "pretrained_early", "pretrained_late", "scratch_late"
SCALED, EQUALISER = "scaled_mixture", "static_equaliser"
SYSTEMS = (SCALED, EQUALISER, "scratch_early", SCRATCH, EARLY, LATE, REFINED)
ABOUT = ("songs", "system", "part", "commit")
SUMMARY = ("mean", "spread")


class Gain(NamedTuple):
    """What one system scores above another, and the least dB that we want under every seed."""

    name: str
    songs: str
    one: str
    other: str
    least: float | None = None


GAINS = (
    Gain("pretrained over mixture / 4, late", "seen", LATE, SCALED),
    Gain("pretrained over static equaliser, late", "seen", LATE, EQUALISER, 0.5),
    Gain("refined over static equaliser", "seen", REFINED, EQUALISER, 1.0),
    Gain("pretrained over scratch, late", "seen", LATE, SCRATCH, 0.0),
    Gain("pretrained over its early checkpoint, late", "seen", LATE, EARLY, 0.0),
    Gain("pretrained over static equaliser, late", "held_out", LATE, EQUALISER, 0.2),
    Gain("refined over static equaliser", "held_out", REFINED, EQUALISER),
    Gain("pretrained over scratch, late", "held_out", LATE, SCRATCH),
)

Reader = Callable[[str, str], Scores]
"""Songs and system -> scores."""
Row = dict[str, str]
"""Of docs/seeds.csv: ABOUT, the dB under each seed, and SUMMARY."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the seeds that are not done, keep the scores, write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--write", action="store_true", help="run nothing, write the page")
    options = parser.parse_args(arguments)
    if options.write:
        records.require(SCORES)
    else:
        readers: dict[int, Reader] = {params.load().seed: experiments.scores}
        for seed in options.seeds:
            name = f"seed-{seed}"
            experiments.run(name, [f"seed={seed}"])
            readers[seed] = lambda songs, system, name=name: experiments.scores(songs, system, name)  # type: ignore[misc]
        write_text(SCORES, text(rows(readers, experiments.commit())))
    write_text(PAGE, page(load()))
    print(PAGE)


def rows(readers: Mapping[int, Reader], commit: str) -> list[Row]:
    """The scores of all systems under all seeds, their means and spreads (max - min)."""
    found = []

    def add(songs: str, system: str, part: str, values: Sequence[float]) -> None:
        numbers = [*values, statistics.mean(values), max(values) - min(values)]
        about = dict(zip(ABOUT, (songs, system, part, commit), strict=True))
        names = [*(f"seed {seed}" for seed in readers), *SUMMARY]
        found.append(about | {n: f"{v:.4f}" for n, v in zip(names, numbers, strict=True)})

    for songs in experiments.SONGS:
        scores = {system: [read(songs, system) for read in readers.values()] for system in SYSTEMS}
        for system, values in scores.items():
            name = LABELS.get(system, system)
            if "step" in values[0]:
                name = f"{system.split('_')[0]}, step {values[0]['step']:.0f}"
            for part in ("total", *STEMS):
                add(songs, name, part, [value[part] for value in values])
        for gain in GAINS:
            if gain.songs == songs:
                pairs = zip(scores[gain.one], scores[gain.other], strict=True)
                add(songs, gain.name, "total", [a["total"] - b["total"] for a, b in pairs])
    return found


def text(found: Sequence[Row]) -> str:
    """The rows as CSV."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(found[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return out.getvalue()


def load(path: Path = SCORES) -> list[Row]:
    """The rows kept so far."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def page(found: Sequence[Row]) -> str:
    """docs/seeds.md."""
    seeds = [name for name in found[0] if name.startswith("seed ")]

    def totals(songs: str) -> str:
        rows = [row for row in found if (row["songs"], row["part"]) == (songs, "total")]
        lines = [[row["system"], *(_db(row[one]) for one in (*seeds, *SUMMARY))] for row in rows]
        return table([["system", *seeds, "mean", "spread (max - min)"], *lines])

    stems: dict[str, list[str]] = {}
    for row in found:
        if row["songs"] == "seen" and row["part"] in STEMS:
            cell = f"{_db(row['mean'])} ({_db(row['spread'])})"
            stems.setdefault(row["system"], [row["system"]]).append(cell)
    return fill(
        "seeds",
        experiments.PAGES,
        commits=", ".join(sorted({row["commit"] for row in found})),
        seen=totals("seen"),
        held_out=totals("held_out"),
        bars=table([["gain", "songs", "wanted", "lowest of the seeds", "met"], *bars(found)]),
        stems=table([["system", *STEMS], *stems.values()]),
    )


def bars(found: Sequence[Row]) -> list[list[str]]:
    """Each gain with a least value, and whether every seed has it."""
    lines = []
    for gain in GAINS:
        for row in found:
            if (row["songs"], row["system"]) == (gain.songs, gain.name) and gain.least is not None:
                lowest = min(float(row[name]) for name in row if name.startswith("seed "))
                met = "yes" if lowest >= gain.least else f"no, by {gain.least - lowest:.2f} dB"
                songs = gain.songs.replace("_", "-")
                lines.append([gain.name, songs, f"{gain.least:.2f}", f"{lowest:.2f}", met])
    return lines


def _db(value: str) -> str:
    return f"{float(value):.2f}"


if __name__ == "__main__":
    with reported():
        main()
