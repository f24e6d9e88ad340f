"""Every row of docs/performance.md, measured; one command a row.

    uv run python -m benchmarks                    # all rows that are not of this code yet
    uv run python -m benchmarks stage1 codebook    # these rows
    uv run python -m benchmarks --again            # all rows anew
    uv run python -m benchmarks --write            # measure nothing, write the page
    uv run python -m benchmarks repro              # the demo's `dvc repro`: never run unless named

Each row is measured in a process of its own and kept in benchmarks/results/rows/, with the machine
and the code: a run that was interrupted goes on where it was. A row that cannot be measured here is
skipped, and says why.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import machine, performance, timing
from benchmarks.row import RESULTS, Options, Result, Row, Skipped, load
from jukesep.base.errors import reported
from jukesep.base.progress import bar

EXPECTED = 30.0  # seconds of a row that was never measured


def rows() -> dict[str, Row]:
    """All rows, in the order of the page."""
    from benchmarks import breakdown, commands, growth, precision, scoring, speed

    found = speed.ROWS | precision.ROWS | scoring.ROWS | commands.ROWS
    return found | breakdown.ROWS | growth.ROWS


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, keep, write the page; 1 if a row failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    every = rows()
    parser.add_argument("rows", nargs="*", help=", ".join(every))
    parser.add_argument("--again", action="store_true", help="also rows that are of this code")
    parser.add_argument("--write", action="store_true", help="write the page alone")
    default = Options()
    parser.add_argument(
        "--seconds", type=float, default=default.seconds, help="of a row's turns, about"
    )
    parser.add_argument(
        "--songs", type=int, default=default.songs, help="of 4 minutes, for prepare: 0.2 GB each"
    )
    options = parser.parse_args(arguments)
    if unknown := set(options.rows) - set(every):
        parser.error(f"no such row: {min(unknown)}. There are: {', '.join(every)}")
    found, here, failed = load(every), machine.describe(), False
    codes = {name: machine.code(_modules(row)) for name, row in every.items()}

    def current(name: str) -> bool:
        one = found.get(name)
        return one is not None and (one.machine, one.code["digest"]) == (
            here,
            codes[name]["digest"],
        )

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
            start = time.perf_counter()
            try:
                result = measure(every[name], Options(options.seconds, options.songs))
            except Exception as error:  # one row that fails is no reason to lose the others
                progress.write(f"{name}: failed: {error}", file=sys.stderr)
                failed = True
            else:
                result.took = round(time.perf_counter() - start, 1)
                result.machine, result.code = here, codes[name]
                result.save(name)
                progress.write(performance.line(name, every[name], result))
            progress.update(expected[name])
    found = load(every)
    performance.write(every, found)
    print(f"{RESULTS}\n{performance.PAGE}")
    if stale := [name for name in found if not current(name)]:
        print(f"Of other code or another machine: {', '.join(stale)}", file=sys.stderr)
    return int(failed)


def measure(row: Row, options: Options) -> Result:
    """A row in a process of its own; why, if it cannot be measured here."""
    try:
        return timing.fresh(row.cores, row.measure, options)
    except Skipped as reason:
        return Result(skipped=str(reason))


def _modules(row: Row) -> list[Path]:
    """The benchmark's own files that decide what a row finds."""
    names = dict.fromkeys((row.module, "speed", "textbook", "timing", "arithmetic"))
    return [Path(__file__).with_name(f"{name}.py") for name in names]


if __name__ == "__main__":
    with reported():
        sys.exit(main())
