"""DVC experiments run by name, and the scores read back."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from jukesep import load_separator
from jukesep.base import params, paths
from jukesep.base.errors import UserError
from jukesep.base.files import write_text
from studies import experiments

ROOT = Path(__file__).parents[2]


def _lock(md5):
    deps = [{"path": "jukesep/training", "md5": md5}, {"path": "data/prepared", "md5": "any.dir"}]
    return yaml.safe_dump({"schema": "2.0", "stages": {"stage1@bass-scratch": {"deps": deps}}})


def _git(folder, *words):
    author = ("-c", "user.name=a", "-c", "user.email=a@b")
    command = ["git", *author, *words]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def test_scores_are_today_s_until_what_decides_them_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _git(tmp_path, "init", "-q", "-b", "main")
    every = ("jukesep/model/vqvae.py", "jukesep/peers/common/task.py", "conf/config.yaml")
    demucs = ("jukesep/peers/demucs.py", "conf/peers/demucs.yaml", "conf/peer/demucs/demo.yaml")
    for name in (*every, *demucs, "jukesep/report/page.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a")
    _git(tmp_path, "add", "-A")
    _git(tmp_path, "commit", "-q", "-m", "the run")
    since = _git(tmp_path, "rev-parse", "--short", "HEAD").strip()
    assert experiments.unchanged(since)
    assert not experiments.unchanged("0123456")
    (tmp_path / "jukesep/report/page.py").write_text("b")
    _git(tmp_path, "commit", "-q", "-a", "-m", "another page")
    assert experiments.unchanged(since)
    for name in (*every, *demucs):
        (tmp_path / name).write_text("b")
        # A peer's own network and recipe decide its scores alone.
        assert experiments.unchanged(since) == (name in demucs)
        assert experiments.unchanged(since, "hdemucs") == (name in demucs)
        assert not experiments.unchanged(since, "demucs")
        (tmp_path / name).write_text("a")
    (tmp_path / every[0]).unlink()
    assert not experiments.unchanged(since)


@pytest.mark.parametrize(
    ("name", "before", "after", "same"),
    [
        ("a.py", "x = 1", '"""What it is."""\n\nx = (  # one\n    1\n)\n', True),
        ("a.py", "def f():\n    return 1", 'def f():\n    """One."""\n    return 1', True),
        ("a.py", "x = 1", "x = 2", False),
        ("a.py", "def f():\n    return 1", "def f():\n    return 2", False),
        ("a.py", "x = '1'", "x = '2'", False),
        ("a.yaml", "a: 1", "# one\na:   1  # of them", True),
        ("a.yaml", "a: 1", "a: 2", False),
        ("a.txt", "a", "a ", False),
    ],
)
def test_comments_and_docstrings_decide_no_scores(tmp_path, monkeypatch, name, before, after, same):
    monkeypatch.chdir(tmp_path)
    _git(tmp_path, "init", "-q", "-b", "main")
    path = Path("jukesep/model") / name
    write_text(path, before)
    _git(tmp_path, "add", "-A")
    _git(tmp_path, "commit", "-q", "-m", "the run")
    path.write_text(after)
    assert experiments.unchanged("HEAD") is same


def test_what_decides_scores_is_in_the_repository():
    assert all((ROOT / place).exists() for place in experiments.DECIDING)


@pytest.mark.parametrize(
    ("overrides", "code", "there", "expected"),
    [
        (["seed=1"], "a", True, True),
        (["seed=2"], "a", True, False),
        (["seed=1"], "b", True, False),
        (["seed=1"], "a", False, False),
    ],
)
def test_an_experiment_is_done_while_parameters_and_code_are_its_own(
    tmp_path, monkeypatch, overrides, code, there, expected
):
    """In a repository that keeps an experiment as DVC does: a commit that a reference names."""

    def run(*words):
        _git(tmp_path, *words)

    monkeypatch.chdir(tmp_path)
    run("init", "-q", "-b", "main")
    run("commit", "-q", "--allow-empty", "-m", "before the experiment")
    run("checkout", "-q", "--detach")
    (tmp_path / "params.yaml").write_text(params.compose(["seed=1"], ROOT / "conf"))
    (tmp_path / "dvc.lock").write_text(_lock("a"))
    run("add", ".")
    run("commit", "-q", "-m", "the experiment")
    # The name of another one begins like it.
    run("update-ref", f"refs/exps/12/345/seed-1{'' if there else '0'}", "HEAD")
    run("checkout", "-q", "main")
    (tmp_path / "dvc.lock").write_text(_lock(code))
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    assert experiments.done("seed-1", overrides) is expected


def test_scores_are_read_by_songs_and_system(tmp_path, monkeypatch):
    files = {
        ("seen", "pretrained_late"): "sdr/pretrained_late",
        ("held_out", "scratch_early"): "held_out/scratch_early",
        ("seen", "scaled_mixture"): "baselines/scaled_mixture",
        ("held_out", "scaled_mixture"): "held_out/baselines/scaled_mixture",
    }
    monkeypatch.chdir(tmp_path)
    for number, ((songs, system), name) in enumerate(files.items()):
        write_text(Path(f"metrics/{name}.json"), json.dumps({"total": number}))
        assert experiments.scores(songs, system) == {"total": number}
    with pytest.raises(UserError, match=r"pretrained_early\.json is not in the workspace"):
        experiments.scores("seen", "pretrained_early")


@pytest.mark.pipeline
def test_an_ablation_runs_as_a_dvc_experiment(tmp_path, monkeypatch):
    """In a clone, at scale=tiny."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "Test")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "test@example.org")
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.chdir(clone)
    name, short = "ablation-independent_blend-1", ["stage2.steps=3", "stage2.checkpoints=[3]"]
    overrides = ["scale=tiny", "ablation=independent_blend", "stems=[vocals]", "seed=1", *short]
    (clone / "conf/config.yaml").write_text("changed\n")
    with pytest.raises(UserError, match="uncommitted"):
        experiments.run(name, overrides)
    subprocess.run(["git", "checkout", "-q", "."], check=True)
    status = ["git", "status", "--porcelain"]
    experiments.run(name, overrides)
    assert subprocess.run(status, capture_output=True, text=True).stdout == ""
    for songs in experiments.SONGS:
        found = experiments.scores(songs, "pretrained_late", name)
        assert found["step"] == 3
        assert set(found) == {"step", "vocals"}  # a total is of all four stems
    with pytest.raises(UserError, match="not in the experiment"):
        experiments.scores("seen", "scratch_late", name)
    models = experiments.output(name, paths.SEPARATOR, tmp_path / "models")
    assert load_separator(models).stems == ("vocals",)
    with pytest.raises(UserError, match=r"dvc get \. results/nothing"):
        experiments.output(name, Path("results/nothing"), tmp_path / "nothing")
