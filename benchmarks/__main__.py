"""Measure the rows of docs/performance.md, docs/gpu.md and docs/paper_scale.md; write the pages.

    uv run python -m benchmarks                    # all rows whose code or machine has changed
    uv run python -m benchmarks stage1 codebook    # these rows
    uv run python -m benchmarks --again            # all rows
    uv run python -m benchmarks --write            # measure nothing, write the pages
    uv run python -m benchmarks repro paper-gpu    # long ones: they run only when named

Each row is measured in a process of its own. Its result is kept in benchmarks/results/rows/, with
the machine and the code, so that an interrupted run resumes with the rows that are left. The last
result of each other kind of processor stays beside it. A row that cannot be measured here is
skipped with the reason; an older result is then kept.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, RawTextHelpFormatter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks import commands, gpu, measuring, paper_scale, performance, scoring, steps
from benchmarks.row import RESULTS, Row, Skipped, load, load_older
from jukesep.base.errors import reported
from jukesep.base.files import write_text
from jukesep.base.progress import bar

GPU_PAGE, PAPER_PAGE = Path("docs/gpu.md"), Path("docs/paper_scale.md")
EXPECTED = 30.0  # seconds of a row that was never measured


def rows() -> dict[str, Row]:
    """All rows, in the order of the page."""
    return steps.ROWS | scoring.ROWS | commands.ROWS | gpu.ROWS | paper_scale.ROWS


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, keep, write the pages; 1 if a row failed."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawTextHelpFormatter)
    every = rows()
    parser.add_argument("rows", nargs="*", help=", ".join(every))
    parser.add_argument("--again", action="store_true", help="measure all rows")
    parser.add_argument("--write", action="store_true", help="measure nothing, write the pages")
    options = parser.parse_args(arguments)
    if unknown := set(options.rows) - set(every):
        parser.error(f"no such row: {min(unknown)}. There are: {', '.join(every)}")
    found, here, failed = load(every), measuring.machine(), False
    codes = {name: measuring.code(row.files) for name, row in every.items()}

    def current(name: str) -> bool:
        one, digest = found.get(name), codes[name]["digest"]
        return one is not None and one.machine == here and one.code["digest"] == digest

    chosen = options.rows or [
        name for name, row in every.items() if row.in_suite and (options.again or not current(name))
    ]
    if options.write:
        chosen = []
    expected = {name: found[name].took if name in found else EXPECTED for name in chosen}
    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    with bar(total=sum(expected.values()), desc="benchmarks", bar_format=form) as progress:
        for name in chosen:
            progress.set_description_str(f"benchmarks: {name}")
            try:
                row = every[name]
                took, result = measuring.timed(partial(measuring.fresh, row.cores, row.measure))
            except Skipped as reason:
                progress.write(f"{name}: not measured here: {reason}")
            except Exception as error:  # one row that fails is no reason to lose the others
                progress.write(f"{name}: failed: {error}", file=sys.stderr)
                failed = True
            else:
                result.took, result.machine, result.code = round(took, 1), here, codes[name]
                result.save(name)
                progress.write(performance.line(name, row, result))
            progress.update(expected[name])
    found = load(every)
    performance.write(every, found, load_older(every))
    write_text(GPU_PAGE, gpu.page(found.get("gpu")))
    write_text(PAPER_PAGE, paper_scale.page(found.get(name) for name in paper_scale.ROWS))
    print("\n".join(map(str, (RESULTS, performance.PAGE, GPU_PAGE, PAPER_PAGE))))
    if stale := [name for name in found if not current(name)]:
        print(f"Of older code or another machine: {', '.join(stale)}", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    with reported():
        sys.exit(main())
