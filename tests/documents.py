"""The project's documents, for tests of what they say."""

from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def read(name):
    """The text of a file of the project."""
    return (ROOT / name).read_text(encoding="utf-8")


def made_by_the_pipeline():
    """What `dvc repro` removes while it works: allowed to be missing."""
    stages = yaml.safe_load(read("dvc.yaml"))["stages"].values()
    listed = [
        out for stage in stages for kind in ("outs", "metrics") for out in stage.get(kind, [])
    ]
    return {out if isinstance(out, str) else next(iter(out)) for out in listed}
