"""README.md's table "Where it stands": the committed scores, beside the paper's.

`python -m jukesep.report.readme` writes the table anew, after a run whose metrics/ are committed.
This module does not import torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..base import params, paths
from ..base.errors import UserError, reported
from ..base.files import write_text
from ..scoring.published import MUSDB_HQ, OTHERS, PAPER, TOTAL
from ..songs.manifest import STEMS
from ..systems import equaliser
from .others import LABELS, REFINED, others, refined_init

README = Path("README.md")
HEADER = "| system | songs | drums | bass | other | vocals | mean |"
LINES = re.compile(re.escape(HEADER) + r"\n(\|.*\n)+")
COLUMNS = (*STEMS, TOTAL)


def table(values: Mapping[str, Any], root: Path = Path()) -> str:
    """The table as Markdown; `values` is params.yaml as a dictionary. UserError without metrics."""
    lines = [HEADER, "|---" * (2 + len(COLUMNS)) + "|"]
    for system, file in _ours(values):
        path = root / paths.METRICS / f"{file}.json"
        try:
            scores = json.loads(path.read_text(encoding="utf-8"))
            cells = [f"{scores[column]:.2f}" for column in COLUMNS]
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; run `dvc repro` to write it") from None
        except KeyError as error:
            raise UserError(f"{path}: has no {error}; the table needs all four stems") from None
        lines.append(_line(system, f"the {values['scale']}'s", cells))
    rows = {"the paper, best checkpoint of each stem": PAPER[0]}
    rows |= {f"{row.system}, in the paper's Table 1": row for row in OTHERS if not row.stated}
    for system, row in rows.items():
        songs = "MUSDB18-HQ" if row.data == MUSDB_HQ else row.data
        lines.append(_line(system, songs, [row.values[column] for column in COLUMNS]))
    return "\n".join(lines) + "\n"


def updated(text: str, values: Mapping[str, Any], root: Path = Path()) -> str:
    """The README's text with the table of these metrics. UserError if it has no such table."""
    new, count = LINES.subn(lambda _: table(values, root), text)
    if count != 1:
        raise UserError(f"{README}: has {count} tables that begin with {HEADER}, one is expected")
    return new


def _ours(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What was scored on our songs: name in the table, file in metrics/."""
    inits = values["inits"]
    for init in inits:
        yield f"jukesep, {init}, late checkpoint", f"sdr/{init}_late"
    for other in others(values):
        name = LABELS.get(other.name, other.name)
        refined = f"jukesep, {refined_init(inits)}, refined by Wiener filters"
        yield (refined if other.name == REFINED else name), f"sdr/{other.name}"
    yield LABELS[equaliser.NAME], f"sdr/{equaliser.NAME}"
    yield LABELS["scaled_mixture"], "baselines/scaled_mixture"
    yield "ideal ratio mask (knows the stems)", "baselines/ideal_ratio_mask"


def _line(system: str, songs: str, cells: list[str]) -> str:
    return f"| {' | '.join([system, songs, *cells])} |"


if __name__ == "__main__":
    with reported():
        content = params.load().model_dump(mode="json")
        write_text(README, updated(README.read_text(encoding="utf-8"), content))
