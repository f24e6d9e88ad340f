"""Common to all tests."""

import atexit
import gc
import os
import shutil
import signal
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from tiny import write_songs

from jukesep.base import params, paths

CONF = Path(__file__).parents[1] / "conf"

# Cycles are looked for among all that torch and Hydra hold, by default some five thousand times.
gc.set_threshold(20_000, 20, 20)

# Without compiled Python each process that a test starts compiles torch anew, 3 s long.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    os.environ["PYTHONPYCACHEPREFIX"] = tempfile.mkdtemp(prefix="jukesep-tests-")
    atexit.register(shutil.rmtree, os.environ["PYTHONPYCACHEPREFIX"], ignore_errors=True)

# Under nohup the tests would start with SIGHUP ignored, and so would the commands that they run.
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items):
    """The longest file first: while one process runs it, the other one runs the rest."""
    items.sort(key=lambda item: item.get_closest_marker("pipeline") is None)


@pytest.fixture(autouse=True)
def _one_thread():
    """The tests' models are so small that a second thread costs more than it brings.

    Set for each test: a command that runs in this process may take as many as there are cores.
    """
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    """What a tiny training hears."""
    return write_songs(tmp_path_factory.mktemp("songs"))


@pytest.fixture
def entered(tmp_path, monkeypatch):
    """An empty folder, entered: a training keeps its own folder below the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(paths.VARIABLE, raising=False)
    return tmp_path


@pytest.fixture(scope="session", autouse=True)
def _composed_once():
    """Hydra takes 0.1 s to compose conf/, and the tests compose much of it several times."""
    compose = params.compose

    @cache
    def composed(overrides):
        return compose(list(overrides), CONF)

    def remembering(overrides, conf="conf"):
        own = Path(conf).resolve() == CONF.resolve()
        return composed(tuple(overrides)) if own else compose(overrides, conf)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(params, "compose", remembering)
        yield
