"""Files and folders appear whole or not at all, and what a killed process leaves can be told."""

import os
import stat
import subprocess
import sys

import pytest

from jukesep.base import files
from jukesep.base.files import UNFINISHED


class _Fault(Exception):
    pass


def _names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def _write(path):
    with files.atomic(path) as unfinished:
        unfinished.write_text("new")
        yield unfinished


def _make(path):
    with files.atomic_folder(path) as unfinished:
        (unfinished / "a").write_text("new")
        yield unfinished


@pytest.mark.parametrize("write", [_write, _make])
def test_what_is_unfinished_has_a_hidden_name_beside_and_the_suffix(tmp_path, write):
    writing = write(tmp_path / "there/x.flac")
    unfinished = next(writing)
    assert unfinished.parent == tmp_path / "there"
    assert unfinished.name.startswith(UNFINISHED)
    assert unfinished.suffix == (".flac" if write is _write else "")
    assert list((tmp_path / "there").iterdir()) == [unfinished]
    assert next(writing, None) is None
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["x.flac"]


@pytest.mark.parametrize("write", [_write, _make])
def test_a_failure_leaves_nothing_not_even_the_folders_that_were_made(tmp_path, write):
    (tmp_path / "there").mkdir()
    for path in (tmp_path / "x", tmp_path / "there/x", tmp_path / "made/for/x"):
        writing = write(path)
        next(writing)
        with pytest.raises(_Fault):
            writing.throw(_Fault)
    assert _names(tmp_path) == ["there"]


def test_a_failure_keeps_what_was_there(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/b").write_text("old")
    for writing in (_write(tmp_path / "file"), _make(tmp_path / "folder")):
        next(writing)
        with pytest.raises(_Fault):
            writing.throw(_Fault)
    assert _names(tmp_path) == ["file", "folder", "folder/b"]
    assert (tmp_path / "file").read_text() == (tmp_path / "folder/b").read_text() == "old"


def test_what_was_there_is_replaced(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/b").write_text("old")
    for writing in (_write(tmp_path / "file"), _make(tmp_path / "folder")):
        assert len(list(writing)) == 1
    assert _names(tmp_path) == ["file", "folder", "folder/a"]
    assert (tmp_path / "file").read_text() == "new"


def test_the_permissions_are_those_of_any_new_file_and_folder(tmp_path):
    old = os.umask(0o027)
    try:
        list(_write(tmp_path / "file"))
        list(_make(tmp_path / "folder"))
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750


def test_what_a_killed_process_leaves_is_swept(tmp_path):
    code = """
import os, sys
from pathlib import Path
from jukesep.base.files import atomic, atomic_folder
with atomic_folder(Path(sys.argv[1]) / "folder") as folder, atomic(folder / "file") as file:
    os._exit(9)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == 9
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / f"{UNFINISHED}file").touch()
    (tmp_path / ".hidden").touch()  # somebody else's
    assert len(_names(tmp_path)) == 5
    files.sweep(tmp_path)
    assert _names(tmp_path) == [".hidden", "sub"]
    files.sweep(tmp_path / "no such folder")


def test_a_folder_is_removed_at_once(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a").touch()
    seen, rmtree = [], files.shutil.rmtree

    def look(path, **options):
        seen.append((tmp_path / "folder").exists())
        rmtree(path, **options)

    monkeypatch.setattr(files.shutil, "rmtree", look)
    files.remove(tmp_path / "folder")
    assert set(seen) == {False}
    assert _names(tmp_path) == []
