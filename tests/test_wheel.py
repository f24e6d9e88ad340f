"""A wheel built from the repository, in an environment with nothing but what it requires."""

import os
import subprocess
from pathlib import Path

import pytest
import soundfile
from commands import STEM, noise, save_models
from programs import needs

from jukesep.base.errors import EXTRAS
from jukesep.separation import models

ROOT = Path(__file__).parents[1]
CI = bool(os.environ.get("CI"))


def _run(*words, cwd=ROOT, **environment):
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(words, cwd=cwd, env=env | environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of the programs of an environment without an extra.

    The packages are those that uv has installed for the tests, linked from its cache; in CI it may
    fetch them.
    """
    uv, folder = needs("uv"), tmp_path_factory.mktemp("wheel")
    offline = () if CI else ("--offline",)
    environment = folder / "environment"
    done = _run(
        *(uv, "sync", "--frozen", "--no-dev", "--no-install-project", *offline),
        UV_PROJECT_ENVIRONMENT=str(environment),
    )
    if done.returncode and not CI:
        fault = done.stderr.partition("error: ")[2].partition("\n")[0]
        pytest.skip(f"only CI may fetch what uv's cache lacks: {fault}")
    assert done.returncode == 0, done.stderr
    done = _run(uv, "build", "--wheel", "--out-dir", str(folder), *offline)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    programs = environment / "bin"
    python = ("--python", str(programs / "python"))
    for words in (("install", "--offline", "--no-deps", str(wheel), *python), ("check", *python)):
        done = _run(uv, "pip", *words)
        assert done.returncode == 0, done.stderr
    return programs


@pytest.fixture
def run(installed, tmp_path):
    """Runs a program of the environment in an empty folder, and returns what it printed."""

    def run(program, *words, status=0):
        done = _run(str(installed / program), *words, cwd=tmp_path)
        assert done.returncode == status, done.stderr
        return done.stdout if status == 0 else done.stderr

    return run


def test_no_extra_is_there_and_no_module_needs_one_to_be_imported(run):
    code = f"""
import pkgutil, sys
from importlib import import_module
from importlib.util import find_spec
import jukesep
assert not jukesep.__file__.startswith({str(ROOT)!r})
assert not [name for name in {sorted(EXTRAS)} if find_spec(name)]
skipped = {{"jukesep.__main__"}} if find_spec("triton") else {{
    "jukesep.__main__", "jukesep.kernels.triton_kernels"}}
for module in pkgutil.walk_packages(jukesep.__path__, "jukesep."):
    if module.name not in skipped:
        import_module(module.name)
"""
    run("python", "-c", code)


def test_it_says_what_it_is(run):
    assert run("jukesep", "--version").startswith("jukesep ")
    assert "separate" in run("python", "-m", "jukesep", "--help")


def test_it_separates_a_song(run, tmp_path):
    soundfile.write(tmp_path / "song.wav", noise(), 11_025)
    models.import_checkpoints(tmp_path / "models", STEM, *save_models(tmp_path))
    assert run("jukesep", "separate", "song.wav", "--models", "models", "-o", "stems")
    found = soundfile.info(tmp_path / f"stems/song/{STEM}.wav")
    assert (found.samplerate, found.channels, found.frames) == (11_025, 2, 4000)


def test_it_loads_models_and_scores(run, tmp_path):
    stage1, _ = save_models(tmp_path)
    code = f"""
import numpy as np, torch, jukesep
vqvae = jukesep.load_jukebox({str(stage1)!r})
assert vqvae(torch.zeros(1, 1, 64)).shape == (1, 1, 64)
audio = np.random.default_rng(0).normal(size=(2, 1000))
assert 19 < jukesep.sdr(audio, 0.9 * audio) < 21
assert 19 < jukesep.sdr_mdx(audio, 0.9 * audio) < 21
assert 19 < jukesep.sdr_v4(audio, 0.9 * audio, 100) < 21
try:
    from jukesep.scoring import metrics
    metrics.museval_extras(audio[None], audio[None], 100)
except jukesep.UserError as error:
    assert "pip install 'jukesep[pipeline]'" in str(error)
else:
    raise AssertionError("museval is not installed")
"""
    run("python", "-c", code)


def test_a_command_of_the_pipeline_names_the_extra(run):
    said = run("jukesep", "compose", status=1)
    assert said == (
        "error: hydra is not installed. This needs jukesep[pipeline]: "
        "pip install 'jukesep[pipeline]'\n"
    )
