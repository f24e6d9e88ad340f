"""Stage `report`: write metrics/, plots/ and docs/results.md from scores and logs."""

from pathlib import Path

from jukesep.base import params
from jukesep.base.errors import reported
from jukesep.report.write import write_report

if __name__ == "__main__":
    with reported():
        write_report(params.load().model_dump(mode="json"), Path())
