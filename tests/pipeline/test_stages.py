"""dvc.yaml: what its stages depend on is what decides their results."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from documents import stages
from sources import ROOT, closure

from jukesep.peers.common import registry

STAGES = stages()
TRAININGS = ("weights", "stage1", "stage2", "peer")
CODE = ("jukesep/", "stages/")

# What a stage runs that does not decide its result, and why.
ANYWHERE = {
    "jukesep/__init__.py": "names for users, and the policy by which threads wait",
    "jukesep/audio/__init__.py": "names the functions of samples.py",
    "jukesep/base/download.py": "the file that it fetches has a checksum",
    "jukesep/base/errors.py": "messages",
    "jukesep/base/files.py": "writes what it is given",
    "jukesep/base/git.py": "tells the commit for the record",
    "jukesep/base/packages.py": "finds installed packages, or says which is missing",
    "jukesep/base/params.py": "the parameters are dependencies themselves",
    "jukesep/base/paths.py": "a file elsewhere has the same content",
    "jukesep/base/progress.py": "messages",
    "jukesep/base/signals.py": "ends a training, which then resumes to the same result",
    "jukesep/base/unchanged.py": "saves time: what it finds is what would be found again",
    "jukesep/pipeline/pretrained.py": "the file that it finds is in weights.depends_on",
    "jukesep/base/parallel.py": "how many songs at a time does not change a song's result",
    "jukesep/resume": "an interruption does not change a training's result",
}
NO_MODEL = "runs no model: what it imports from scoring has no part in that"
EQUALISER = {"jukesep/systems": "fits no equaliser: takes its name, or nothing"}
NOT_DECIDING = dict.fromkeys(STAGES, ANYWHERE) | {
    "evaluate": ANYWHERE | EQUALISER,
    "baselines": ANYWHERE
    | {
        "jukesep/kernels": NO_MODEL,
        "jukesep/model": NO_MODEL,
        "jukesep/separation/chunked.py": NO_MODEL,
    },
    "peer": ANYWHERE | {"jukesep/kernels": "choose the device: a peer's network is a library's"},
    "evaluate_peer": ANYWHERE
    | EQUALISER
    | {
        "jukesep/kernels": "choose the device: a peer's network is a library's",
        "jukesep/model": NO_MODEL,
        "jukesep/separation/chunked.py": NO_MODEL,
    },
    "listen": ANYWHERE | EQUALISER,
    "report": ANYWHERE
    | EQUALISER
    | {
        "jukesep/audio": "reads scores, no sound",
        "jukesep/kernels": NO_MODEL,
        "jukesep/model": NO_MODEL,
        "jukesep/separation/chunked.py": NO_MODEL,
    },
}


NETWORK = "jukesep/peers/${key}.py"


def _code(stage: str) -> list[str]:
    """The places of code, but for the network of the peer that a stage is for."""
    return [d for d in STAGES[stage]["deps"] if d.startswith(CODE) and d != NETWORK]


def _below(name: str, places) -> bool:
    """Whether a file or folder is one of the places, or lies in one."""
    return any(name == place or name.startswith(f"{place}/") for place in places)


def _empty(name: str) -> bool:
    """Whether a file has nothing but a docstring."""
    return len(ast.parse((ROOT / name).read_text(encoding="utf-8")).body) <= 1


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_code_that_decides_its_result(stage):
    """All that its script imports, and what that imports, also inside functions."""
    runs = {name for name in closure(ROOT / f"stages/{stage}.py") if not _empty(name)}
    deciding = {name for name in runs if not _below(name, NOT_DECIDING[stage])}
    assert {name for name in deciding if not _below(name, _code(stage))} == set()
    # And on no code that it does not run.
    assert [
        place for place in _code(stage) if not any(_below(name, [place]) for name in runs)
    ] == []


def test_every_exception_is_needed():
    used = set()
    for stage, exceptions in NOT_DECIDING.items():
        runs = closure(ROOT / f"stages/{stage}.py")
        found = {place for place in exceptions if any(_below(name, [place]) for name in runs)}
        used |= found
        # Those of one stage are used by that stage.
        assert set(exceptions) - set(ANYWHERE) <= found, stage
    assert used >= set(ANYWHERE)


@pytest.mark.parametrize("stage", TRAININGS)
@pytest.mark.parametrize(
    "edited",
    [
        "audio/decode.py",
        "audio/encode.py",
        "pipeline/evaluate.py",
        "pipeline/pack.py",
        "report",
        "resume",
        "scoring",
        "separation",
    ],
)
def test_an_edit_elsewhere_trains_nothing(stage, edited):
    place = f"jukesep/{edited}"
    assert (ROOT / place).exists()
    assert not _below(place, _code(stage))
    assert not any(_below(name, [place]) for name in _code(stage))
    assert not _below("jukesep/cli.py", _code(stage))


@pytest.mark.parametrize("name", registry.NAMES)
def test_a_peer_depends_on_its_own_network_alone(name):
    """An edit of one peer's network trains no other: the registry imports it by its name."""
    with_network = {stage for stage in STAGES if NETWORK in STAGES[stage]["deps"]}
    assert with_network == {"peer", "evaluate_peer"}
    runs = closure(ROOT / NETWORK.replace("${key}", name))
    others = {f"jukesep/peers/{other}.py" for other in registry.NAMES if other != name}
    assert not runs & others
    for stage in with_network:
        places = (NETWORK.replace("${key}", name), *_code(stage), *NOT_DECIDING[stage])
        assert {file for file in runs if not _empty(file) and not _below(file, places)} == set()


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_lists_at_most_ten_places_of_code(stage):
    names = _code(stage)
    assert len(names) <= 10
    assert len(set(STAGES[stage]["deps"])) == len(STAGES[stage]["deps"])
    assert all((ROOT / name).exists() for name in names)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_whole_outputs(stage):
    """On a file inside one, DVC fails where an experiment restores the stage from the run-cache."""
    outs = [
        name
        for other in STAGES.values()
        for out in other["outs"]
        for name in ([out] if isinstance(out, str) else out)
    ]
    inside = [d for d in STAGES[stage]["deps"] if _below(d, outs) and d not in outs]
    assert inside == []


def test_every_stage_is_described():
    descriptions = [stage["desc"] for stage in STAGES.values()]
    assert all(text.endswith(".") and "\n" not in text for text in descriptions)
    assert len(set(descriptions)) == len(STAGES)
    assert set(STAGES) == {path.stem for path in Path(ROOT / "stages").glob("*.py")}


WITH_AN_ITEM = [name for name, stage in STAGES.items() if "${" in stage["cmd"]]


@pytest.mark.parametrize("stage", WITH_AN_ITEM)
def test_a_stage_run_by_hand_says_what_its_item_may_be(stage):
    """As docs/scaling.md runs it on several nodes."""

    def said(*words):
        line = [sys.executable, "-m", f"stages.{stage}", *words]
        run = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
        assert "Traceback" not in run.stderr, run.stderr
        return run.returncode, run.stdout + run.stderr

    wanted = STAGES[stage]["cmd"].count("${")
    status, text = said(*["nothing"] * wanted)
    assert status == 2
    assert "error: argument" in text
    assert "'nothing' is not in params.yaml: " in text
    status, text = said()
    assert status == 2
    assert "arguments are required" in text
    status, text = said("--help")
    assert status == 0
    assert f"Stage `{stage}`" in text
