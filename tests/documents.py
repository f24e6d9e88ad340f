"""The project's documents, for tests of what they say."""

import re
import shlex
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]


def read(name):
    """The text of a file of the project."""
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(page, *languages):
    """Contents of the fenced blocks of some languages."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return [block for name, block in found if name in languages]


def commands(pages=PAGES):
    """Command lines of all sh blocks, each as words."""
    lines = [
        line
        for page in pages
        for block in blocks(page.read_text(encoding="utf-8"), "sh")
        for line in block.splitlines()
    ]
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def readme_commands():
    """Command lines of the README as written there: of its sh blocks, and those in sentences."""
    text = read("README.md")
    whole = [line for block in blocks(text, "sh") for line in block.splitlines()]
    named = re.findall(r"`((?:uv run |jukesep |dvc )[^`\n]*)`", text)
    return [line.split(" #")[0].strip() for line in (*whole, *named)]


def stages():
    """Name -> what dvc.yaml says of a stage; of a foreach, what it does for each."""
    found = yaml.safe_load(read("dvc.yaml"))["stages"]
    return {name: stage | stage.get("do", {}) for name, stage in found.items()}


def made_by_the_pipeline():
    """What `dvc repro` removes while it works: allowed to be missing."""
    listed = []
    for stage in stages().values():
        listed += [*stage.get("outs", []), *stage.get("metrics", [])]
    return {out if isinstance(out, str) else next(iter(out)) for out in listed}
