"""The files that GitHub, editors and citation tools read."""

import json
import re
import tomllib

import pytest
import yaml
from documents import ROOT, read

VERSION = tomllib.loads(read("pyproject.toml"))["project"]["version"]


def test_the_citation_is_of_this_version_and_of_the_paper():
    citation = yaml.safe_load(read("CITATION.cff"))
    # What CITATION.cff's format requires.
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert str(citation["version"]) == VERSION
    paper = citation["preferred-citation"]
    assert "2111.14200" in paper["url"]
    assert [author["family-names"] for author in paper["authors"]] == [
        "Zai El Amri",
        "Tautz",
        "Ritter",
        "Melnik",
    ]


def test_the_changelog_begins_with_this_version():
    found = re.findall(r"^## \[([^\]]+)\]", read("CHANGELOG.md"), re.MULTILINE)
    assert found[0] in (VERSION, "Unreleased")
    assert VERSION in found


@pytest.mark.parametrize("form", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")))
def test_an_issue_form_has_what_github_asks_for(form):
    content = yaml.safe_load(form.read_text(encoding="utf-8"))
    assert content["name"]
    assert content["description"]
    names = [part["id"] for part in content["body"]]
    assert len(names) == len(set(names))
    for part in content["body"]:
        assert part["type"] in ("textarea", "input", "dropdown", "checkboxes")
        assert part["attributes"]["label"]


def test_the_container_has_the_oldest_python_of_the_project():
    container = json.loads(read(".devcontainer/devcontainer.json"))
    oldest = tomllib.loads(read("pyproject.toml"))["project"]["requires-python"]
    assert f">={container['image'].rpartition(':')[2]}" == oldest
    assert container["postCreateCommand"] == "pip install uv && uv sync"


def test_the_lock_file_has_the_pins_of_the_project():
    content = tomllib.loads(read("pyproject.toml"))
    project = content["project"]
    pins = set(project["dependencies"]).union(*project["optional-dependencies"].values())
    pins |= {*content["dependency-groups"]["dev"]} - {"jukesep[peers,pipeline]"}
    lines = read("requirements.lock").splitlines()
    locked = [line.split(" ;")[0].lower() for line in lines]
    # A second version for other Pythons would stand beside a pin.
    names = [line.split("==")[0] for line in locked]
    for pin in pins:
        assert pin.lower() in locked
        assert names.count(pin.lower().split("==")[0]) == 1
    # Versions alone: no address of a package index, no file of somebody's machine.
    assert all(re.fullmatch(r"[\w.-]+(\[[\w,-]+\])?==[\w.]+", line) for line in locked)
