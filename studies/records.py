"""Results of a study, kept as CSV: a row for each instance of a dataclass of texts and numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from jukesep.base.errors import UserError

Record = TypeVar("Record")


def text(kind: type[Record], records: Iterable[Record]) -> str:
    """Records of a dataclass as CSV, below a line with the names of its fields."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_names(kind))
    writer.writerows(astuple(record) for record in records)  # type: ignore[call-overload]
    return out.getvalue()


def load(kind: type[Record], path: Path) -> list[Record]:
    """The records in a file that `text` made; none if there is no file."""
    if not path.exists():
        return []
    hints = get_type_hints(kind)
    types = [hints[name] for name in _names(kind)]
    with path.open(encoding="utf-8", newline="") as file:
        _, *rows = csv.reader(file)
    return [
        kind(*(convert(cell) for convert, cell in zip(types, row, strict=True))) for row in rows
    ]


def require(path: Path) -> None:
    """UserError if the results of a study are not there to write its page from."""
    if not path.exists():
        raise UserError(f"{path}: no such file. Restore it with git, or run without --write.")


def _names(kind: Any) -> list[str]:
    return [field.name for field in fields(kind)]
