"""The folder of `jukesep score`: one JSON file for each song, written as soon as it is scored.

    OUTPUT/test/<song>.json     scores by second in museval's form, and of the whole song
    OUTPUT/scores.csv           every score
    OUTPUT/scores.md            the tables

`museval.EvalStore().add_eval_dir(OUTPUT)` reads the JSON files of the test songs: their "targets"
are museval's. "jukesep" beside them has the scores of the whole song, and what they were made from,
so that a later run scores only what has changed. This module does not import torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..base.errors import UserError
from ..base.files import write_text
from ..base.unchanged import marks
from ..songs.manifest import SPLITS, Song
from . import metrics
from .evaluation import Row

CSV, TABLES = "scores.csv", "scores.md"
# Ours -> museval's names, in its order.
MUSEVAL = {"sdr_v4": "SDR", "sir_v4": "SIR", "isr_v4": "ISR", "sar_v4": "SAR"}
Frames = Mapping[str, Mapping[str, metrics.Array]]
"""{stem: {metric of BSSEval v4: one value a second}}."""


@dataclass(frozen=True)
class Origin:
    """What the scores of a song were made from."""

    run: Mapping[str, Any]
    """The system and the options, as JSON can store them."""
    sample_rate: int
    """In Hz, that the song was scored at."""
    files: Mapping[str, list[int]]
    """Name -> size, time of the last change and inode of each file."""

    def as_dict(self) -> dict[str, Any]:
        return {"run": dict(self.run), "rate": self.sample_rate, "files": dict(self.files)}


def origin(run: Mapping[str, Any], sample_rate: int, files: Mapping[str, Path]) -> Origin:
    """What a run would make the scores of a song from; files that are missing have no marks."""
    found = {name: marks([path]) for name, path in files.items()}
    there = {name: next(iter(one.values())) for name, one in found.items() if one}
    return Origin(run, sample_rate, there)


class Store:
    """The JSON files of one split in a folder. UserError if other files are in the folder."""

    def __init__(self, output: Path, split: str) -> None:
        self.output = output
        self.folder = output / split
        if output.exists() and not output.is_dir():
            raise UserError(f"{output}: is a file. Choose another --output.")
        known = {*SPLITS, CSV, TABLES}
        other = [p.name for p in output.iterdir() if p.name[0] != "."] if output.exists() else []
        if foreign := sorted(set(other) - known):
            raise UserError(
                f"{output}: holds {foreign[0]}, so it is not a folder of scores. Choose another "
                "--output."
            )
        # Nobody else's scores are replaced or deleted, such as those that museval has written.
        for path in sorted(self.folder.glob("*.json")):
            content = _content(path)
            if content is not None and not (isinstance(content, dict) and "jukesep" in content):
                raise UserError(
                    f"{path}: was not written by `jukesep score`. Choose another --output."
                )

    def path(self, song: str) -> Path:
        """The file of a song."""
        return self.folder / f"{song}.json"

    def load(self, song: Song, wanted: Origin) -> list[Row] | None:
        """The rows of a song if they were made from what is wanted, else None."""
        kept = self._read(self.path(song.name))
        if kept is None or kept.get("from") != json.loads(json.dumps(wanted.as_dict())):
            return None
        try:
            return [
                Row(song, stem, system, "", "", metric, float(value))
                for system, stems in kept["scores"].items()
                for stem, values in stems.items()
                for metric, value in values.items()
            ]
        except (KeyError, AttributeError, TypeError, ValueError):
            return None  # damaged: it is scored again

    def save(self, song: Song, rows: Iterable[Row], frames: Frames, made: Origin) -> None:
        """Write the scores of a song, atomically."""
        scores: dict[str, dict[str, dict[str, float]]] = {}
        for row in rows:
            stems = scores.setdefault(row.system, {})
            stems.setdefault(row.stem, {})[row.metric] = row.value
        content = {
            "targets": [target(stem, values) for stem, values in frames.items()],
            "jukesep": {"scores": scores, "from": made.as_dict()},
        }
        text = json.dumps(content, indent=1, ensure_ascii=False)
        write_text(self.path(song.name), text + "\n")

    def drop(self, song: str) -> None:
        """Delete the file of a song that can no longer be scored."""
        self.path(song).unlink(missing_ok=True)

    def foreign(self, run: Mapping[str, Any]) -> list[str]:
        """The songs whose scores are of another system or of other options."""
        own = json.loads(json.dumps(dict(run)))
        found = []
        for path in sorted(self.folder.glob("*.json")):
            made = (self._read(path) or {}).get("from")
            if not isinstance(made, dict) or made.get("run") != own:
                found.append(path.stem)
        return found

    @staticmethod
    def _read(path: Path) -> dict[str, Any] | None:
        """What we keep in a file; None if it is missing or not ours."""
        content = _content(path)
        kept = content.get("jukesep") if isinstance(content, dict) else None
        return kept if isinstance(kept, dict) else None


def _content(path: Path) -> Any:
    """What a JSON file holds; None if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def target(stem: str, values: Mapping[str, metrics.Array]) -> dict[str, Any]:
    """A stem in museval's form. A score that there is not is NaN, and so is one that is infinite.

    A song without any score has one frame: museval's own reader takes no target without frames.
    """
    count = max([1, *(len(frames) for frames in values.values())])
    missing = np.full(count, np.nan)
    found = {name: values.get(metric, missing) for metric, name in MUSEVAL.items()}
    return {
        "name": stem,
        "frames": [
            {
                "time": float(second),
                "duration": 1.0,
                "metrics": {name: _rounded(frames[second]) for name, frames in found.items()},
            }
            for second in range(count)
        ],
    }


def _rounded(value: float) -> float:
    """Five digits after the point, as museval writes."""
    return round(float(value), 5) if np.isfinite(value) else math.nan
