"""git is asked where there is one, and its absence is no fault."""

import subprocess

from jukesep.base.git import git


def _run(folder, *words):
    subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True)


def test_what_git_prints_is_returned_and_silence_is_none(tmp_path):
    _run(tmp_path, "init", "-b", "somewhere")
    assert git("branch", "--show-current", folder=tmp_path) == "somewhere"
    assert git("status", "--porcelain", folder=tmp_path) is None
    (tmp_path / "file").touch()
    assert git("status", "--porcelain", folder=tmp_path) == "?? file"


def test_without_a_commit_a_repository_or_a_git_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git("rev-parse", "HEAD", folder=tmp_path) is None
    _run(tmp_path, "init")
    assert git("rev-parse", "HEAD", folder=tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git("status", "--porcelain", folder=tmp_path) is None
