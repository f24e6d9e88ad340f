"""README.md's table "Where it stands": the committed scores, beside the peers' and the paper's.

`python -m jukesep.report.readme` writes the table anew, after a run whose metrics/ are committed.
The peers' scores are those that `python -m studies.systems` keeps. This module does not import
torch.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..base import params, paths
from ..base.errors import UserError, reported
from ..base.files import write_text
from ..base.params import Peers
from ..scoring.published import PAPER, TOTAL
from ..songs.manifest import STEMS
from ..systems import equaliser
from .others import LABELS, REFINED, refined_init

README = Path("README.md")
PEERS = Path("docs/systems/scores.csv")
"""Scores of all peers at the demo's compute."""
HEADER = "| system | songs | drums | bass | other | vocals | mean |"
LINES = re.compile(re.escape(HEADER) + r"\n(\|.*\n)+")
COLUMNS = (*STEMS, TOTAL)
RUN = (1.0, "0", "seen")  # share of the demo's compute, seed, songs
NAMES = tuple(Peers.model_fields)


def table(values: Mapping[str, Any], root: Path = Path()) -> str:
    """The table as Markdown; `values` is params.yaml as a dictionary. UserError without metrics."""
    songs = f"the {values['scale']}'s"
    lines = [HEADER, "|---" * (2 + len(COLUMNS)) + "|"]
    for system, file in _measured(values):
        path = root / paths.METRICS / f"{file}.json"
        try:
            scores = json.loads(path.read_text(encoding="utf-8"))
            cells = [f"{scores[column]:.2f}" for column in COLUMNS]
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; run `dvc repro` to write it") from None
        except KeyError as error:
            raise UserError(f"{path}: has no {error}; the table needs all four stems") from None
        lines.append(_line(system, songs, cells))
        if file == f"sdr/{REFINED}":
            lines += [_line(name, "the demo's", cells) for name, cells in _peers(root)]
    best = [PAPER[0].values[column] for column in COLUMNS]
    lines.append(_line("the paper, best checkpoint of each stem", "MUSDB18-HQ", best))
    return "\n".join(lines) + "\n"


def updated(text: str, values: Mapping[str, Any], root: Path = Path()) -> str:
    """The README's text with the table of these metrics. UserError if it has no such table."""
    new, count = LINES.subn(lambda _: table(values, root), text)
    if count != 1:
        raise UserError(f"{README}: has {count} tables that begin with {HEADER}, one is expected")
    return new


def _measured(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What every run scores on our songs: name in the table, file in metrics/."""
    inits = values["inits"]
    for init in inits:
        yield f"jukesep, {init}, late checkpoint", f"sdr/{init}_late"
    yield f"jukesep, {refined_init(inits)}, refined by Wiener filters", f"sdr/{REFINED}"
    yield LABELS[equaliser.NAME], f"sdr/{equaliser.NAME}"
    yield LABELS["scaled_mixture"], "baselines/scaled_mixture"
    yield "ideal ratio mask (knows the stems)", "baselines/ideal_ratio_mask"


def _peers(root: Path) -> list[tuple[str, list[str]]]:
    """Name and scores of each peer on the seen songs, trained at the demo's compute, seed 0."""
    path = root / PEERS
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["system"].startswith(NAMES)]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run `python -m studies.systems`") from None
    rows = [row for row in rows if (float(row["budget"]), row["seed"], row["songs"]) == RUN]
    rows.sort(key=lambda row: float(row[TOTAL]))
    return [
        (LABELS[row["system"]], [f"{float(row[column]):.2f}" for column in COLUMNS]) for row in rows
    ]


def _line(system: str, songs: str, cells: list[str]) -> str:
    return f"| {' | '.join([system, songs, *cells])} |"


if __name__ == "__main__":
    with reported():
        content = params.load().model_dump(mode="json")
        write_text(README, updated(README.read_text(encoding="utf-8"), content))
