"""What pages are made of: Markdown templates, and tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from string import Template

FOLDER = Path(__file__).with_name("pages")


def fill(page: str, folder: Path = FOLDER, **parts: str) -> str:
    """The text of a page: its template with each ${part} filled in."""
    template = (folder / f"{page}.md").read_text(encoding="utf-8")
    return Template(template).substitute(parts)


def table(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first line its head."""
    rows = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
