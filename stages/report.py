"""Stage `report`: write metrics/, plots/ and docs/results.md from scores and logs.

It is the last stage, so it prints what the run has found.
"""

from pathlib import Path

from jukesep.base import params
from jukesep.base.errors import reported
from jukesep.report.write import summary, write_report

if __name__ == "__main__":
    with reported():
        write_report(params.load().model_dump(mode="json"), Path())
        print(summary(Path()))
