"""What trains and runs no model does not wait for torch to be imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import jukesep

ROOT = Path(__file__).parents[1]
TORCH_FREE = (
    "stages.prepare", "stages.baselines", "stages.report", "stages.listen", "jukesep.listen",
    "jukesep.songs", "jukesep.params", "jukesep.decode", "jukesep.encode", "jukesep.separate_files",
    "jukesep.band", "jukesep.prepare", "jukesep.audio", "jukesep.download", "jukesep.pretrained",
    "jukesep.scores", "jukesep.evaluation", "jukesep.published", "jukesep.results",
    "jukesep.results_page", "jukesep.figures", "jukesep.report", "jukesep.find_songs",
    "jukesep.score_table", "jukesep.checks", "jukesep.musdb", "jukesep.status", "jukesep.identity",
    "jukesep.launch", "jukesep.signals", "jukesep.known",
)  # fmt: skip
CODE = """
import sys
from importlib import import_module

def none_of(after, *names):
    assert not set(names) & set(sys.modules), f'{after} imports one of {names}'

import jukesep
assert set(jukesep.__all__) <= set(dir(jukesep))
none_of('jukesep', 'numpy', 'torch')
from jukesep import musdb
musdb.archive_source(), musdb.validation_songs()
none_of('the address of MUSDB18-HQ', 'torch', 'musdb', 'stempeg')
from jukesep import scores
scores.museval_metrics()
none_of("museval's formulas", 'torch', 'museval')
jukesep.sdr, jukesep.sdr_mdx, jukesep.sdr_v4, jukesep.STEMS, jukesep.UserError
none_of('a public name without a model', 'torch')
for name in sys.argv[1:]:
    import_module(name)
    none_of(name, 'torch')
[getattr(jukesep, name) for name in jukesep.__all__]
"""


def test_nothing_is_imported_before_it_is_needed():
    """In a process of its own, one module after the other: the first to import it is named.

    It finds no program, ffmpeg among them.
    """
    command = [sys.executable, "-c", CODE, *TORCH_FREE]
    env = os.environ | {"PATH": ""}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


LAYER = """
import sys
import torch
from jukesep.vqvae import Architecture, Encoder

Encoder(Architecture(width=4, depth=1))(torch.zeros(1, 1, 64)).sum().backward()
slow = {"scipy.linalg", "scipy.signal", "torch._dynamo", "pandas"} & set(sys.modules)
assert not slow, f"a step of a training imports {slow}"
import scipy.linalg.cython_blas
"""


def test_a_step_does_not_wait_for_what_it_does_not_need():
    done = subprocess.run([sys.executable, "-c", LAYER], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("given", "found"), [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active")]
)
def test_threads_of_torch_leave_their_cores_to_others(given, found):
    code = "import jukesep, os, sys; assert os.environ['OMP_WAIT_POLICY'] == sys.argv[1]"
    env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    subprocess.run([sys.executable, "-c", code, found], cwd=ROOT, env=env | given, check=True)


def test_other_names_are_not_public():
    with pytest.raises(AttributeError, match="'jukesep' has no attribute 'sdr_v5'"):
        jukesep.sdr_v5  # noqa: B018


def test_every_module_that_says_so_is_among_them():
    for path in (ROOT / "jukesep").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "No torch here" in text or "does not import torch" in text.replace("not\n", "not "):
            assert f"jukesep.{path.stem}" in TORCH_FREE
