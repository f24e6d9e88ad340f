"""Files and folders appear whole or not at all, and what a killed process leaves can be told."""

import errno
import os
import stat
import subprocess
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from filelock import FileLock

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
def test_what_is_unfinished_has_its_name_in_a_hidden_folder_beside(tmp_path, write):
    writing = write(tmp_path / "there/x.flac")
    unfinished = next(writing)
    hidden = unfinished.parent
    assert (unfinished.name, hidden.parent) == ("x.flac", tmp_path / "there")
    assert hidden.name.startswith(UNFINISHED)
    assert list((tmp_path / "there").iterdir()) == [hidden]
    assert files.final(unfinished) == tmp_path / "there/x.flac"
    assert files.final(tmp_path / "there/x.flac") == tmp_path / "there/x.flac"
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


def test_threads_do_not_change_the_permissions_of_others(tmp_path):
    """The umask belongs to the process: to read it by setting it opens every other new file."""
    found, old = [], os.umask(0o027)

    def write(number):
        for turn in range(40):
            path = tmp_path / f"{number}-{turn}"
            list(_write(path))
            (tmp_path / f"plain-{number}-{turn}").touch()
            found.append(stat.S_IMODE((tmp_path / f"plain-{number}-{turn}").stat().st_mode))

    try:
        with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(4) as pool:
            patch.setattr(os, "umask", None)
            list(pool.map(write, range(4)))
    finally:
        os.umask(old)
    assert set(found) == {0o640}


@pytest.mark.skipif(os.name == "nt", reason="Windows deletes no open file")
def test_nobody_can_take_a_folder_that_is_being_deleted(tmp_path):
    hidden = tmp_path / f"{UNFINISHED}x"
    hidden.mkdir()
    lock = FileLock(hidden / files.LOCK, thread_local=False)
    lock.acquire()
    release, there = lock.release, []
    lock.release = lambda: there.append(hidden.exists()) or release()
    files._discard(hidden, lock)
    assert there == [False]
    assert not hidden.exists()


# --- killed processes -------------------------------------------------------------------------


def _run(code, folder, **options):
    code = f"""
import os, pathlib, sys
from pathlib import Path
from jukesep.base.files import appear, atomic, atomic_folder, remove, temporary
here = Path(sys.argv[1])
{code}
"""
    return subprocess.Popen([sys.executable, "-c", code, str(folder)], text=True, **options)


def test_what_a_killed_process_leaves_is_swept(tmp_path):
    done = _run(
        """
with atomic_folder(here / "folder") as folder, atomic(folder / "file"):
    os._exit(9)
""",
        tmp_path,
    )
    assert done.wait() == 9
    (tmp_path / ".hidden").touch()  # somebody else's
    (tmp_path / f"{UNFINISHED}file").touch()
    assert len(_names(tmp_path)) == 8
    files.sweep(tmp_path)
    assert _names(tmp_path) == [".hidden", f"{UNFINISHED}file"]
    files.sweep(tmp_path / "no such folder")


def test_whoever_writes_next_in_a_folder_sweeps_it(tmp_path):
    done = _run("with atomic(here / 'a'):\n    os._exit(9)", tmp_path)
    assert done.wait() == 9
    assert len(_names(tmp_path)) > 1
    files.write_text(tmp_path / "b", "")
    assert _names(tmp_path) == ["b"]


def test_what_a_living_process_writes_is_not_swept(tmp_path):
    code = """
with atomic(here / "sub/file") as file, atomic_folder(here / "folder") as folder:
    print("writing", flush=True)
    sys.stdin.read()
    file.write_text("whole")
"""
    process = _run(code, tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == "writing\n"
    (tmp_path / "sub/link").symlink_to(tmp_path)
    files.sweep(tmp_path, below=True)
    files.write_text(tmp_path / "sub/other", "")
    process.communicate("")
    assert process.returncode == 0
    assert _names(tmp_path) == ["folder", "sub", "sub/file", "sub/link", "sub/other"]
    assert (tmp_path / "sub/file").read_text() == "whole"


# What changes a folder; a replace is a rename, an unlink a remove.
STEPS = ("os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir")
KILLED = """
steps, seen, last = {steps}, 0, int(sys.argv[2])
def hook(event, arguments):
    global seen
    if event in steps:
        seen += 1
        if seen == last:
            os._exit(9)
sys.addaudithook(hook)
{work}
"""


@pytest.mark.parametrize("kind", ["folder", "files"])
def test_killed_at_any_step_what_was_there_is_there_again_or_what_is_new(tmp_path, kind):
    """Each step that changes a folder is the last of a process in turn."""
    work = {
        "folder": "with atomic_folder(here / 'x') as new:\n    (new / 'a').write_text('new')",
        "files": """
with temporary(here / 'a') as a, temporary(here / 'b') as b:
    a.write_text('new')
    b.write_text('new')
    appear({a: here / 'a', b: here / 'b'})
""",
    }[kind]
    seen = set()
    for last in range(1, 100):
        here = tmp_path / str(last)
        here.mkdir()
        names = ("x/a",) if kind == "folder" else ("a", "b")
        for name in names:
            (here / name).parent.mkdir(exist_ok=True)
            (here / name).write_text("old")
        code = KILLED.format(steps=STEPS, work=work)
        code = f"import sys; sys.argv = ['', {str(here)!r}, '{last}']\n{HEAD}\n{code}"
        ended = os.waitstatus_to_exitcode(_fork(code))
        files.sweep(here)
        assert _names(here) == (["x", "x/a"] if kind == "folder" else ["a", "b"])
        seen.add(tuple((here / name).read_text() for name in names))
        if ended == 0:
            break
    assert ended == 0
    assert last > 8
    whole = {("old",) * len(names), ("new",) * len(names)}
    assert whole <= seen <= whole | {("new", "old")}


HEAD = """
import os
from pathlib import Path
from jukesep.base.files import appear, atomic_folder, temporary
here = Path(sys.argv[1])
"""


def _fork(code):
    """Run code in a fork of this process, which is quicker than a new one; its wait status."""
    child = os.fork()
    if child == 0:
        try:
            exec(code, {"__name__": "__main__"})
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


# --- several files together -------------------------------------------------------------------


def _pair(folder, wanted="ab"):
    """Appear a and b together: the old ones, or none, stay if it fails."""
    with ExitStack() as stack:
        new = {stack.enter_context(files.temporary(folder / n)): folder / n for n in wanted}
        for path in new:
            path.write_text("new")
        files.appear(new)


def _failing(patch, name, path):
    """Make a rename to `path` fail, as on a failing disk."""
    real = getattr(os, name)

    def fail(source, target, **options):
        if os.fspath(target) == os.fspath(path):
            raise OSError(errno.EIO, "Input/output error", os.fspath(path))
        return real(source, target, **options)

    patch.setattr(os, name, fail)


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("there", ["", "a", "ab"])
def test_files_appear_together_or_not_at_all(tmp_path, monkeypatch, there, links):
    for name in there:
        (tmp_path / name).write_text("old")
    if not links:
        monkeypatch.setattr(os, "link", lambda *_, **__: os.stat("/no such file"))
    with pytest.MonkeyPatch.context() as patch:
        _failing(patch, "replace", tmp_path / "b")
        with pytest.raises(OSError, match="Input/output error"):
            _pair(tmp_path)
    assert _names(tmp_path) == list(there)
    assert all((tmp_path / name).read_text() == "old" for name in there)
    _pair(tmp_path)
    assert _names(tmp_path) == ["a", "b"]
    assert all((tmp_path / name).read_text() == "new" for name in "ab")


def test_what_cannot_be_taken_back_is_named(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("old")
    real, begun = os.replace, []

    def fail(source, target):
        begun.append(target)
        if len(begun) > 1:  # b, and then a on its way back
            raise OSError(errno.EIO, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(files.PartlyWritten, match=f"not undone: {tmp_path}/a is new"):
        _pair(tmp_path)
    assert (tmp_path / "a").read_text() == "new"


def test_what_cannot_be_put_back_is_put_back_by_a_later_sweep(tmp_path, monkeypatch):
    (tmp_path / "b").write_text("old")
    (tmp_path / "a").write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", lambda *_, **__: os.stat("/no such file"))
        _failing(patch, "replace", tmp_path / "b")
        real = Path.rename

        def rename(path, target):
            if Path(target) == tmp_path / "b":
                raise OSError(errno.EIO, "Input/output error")
            return real(path, target)

        patch.setattr(Path, "rename", rename)
        with pytest.raises(files.PartlyWritten, match=f"{tmp_path}/b is in {tmp_path}/.unf"):
            _pair(tmp_path)
        assert not (tmp_path / "b").exists()
    files.sweep(tmp_path)
    assert _names(tmp_path) == ["a", "b"]
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text() == "old"


def test_a_file_does_not_replace_a_folder(tmp_path):
    (tmp_path / "b/below").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        _pair(tmp_path)
    with pytest.raises(OSError, match="directory"):
        _pair(tmp_path, "b")
    assert _names(tmp_path) == ["b", "b/below"]


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


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_write_to_a_full_disk_names_the_file(tmp_path, number):
    """Python names none: the error of a write has no file name."""
    with pytest.raises(OSError, match="Errno") as error, files.atomic(tmp_path / "whole.wav"):
        raise OSError(number, os.strerror(number))
    assert error.value.filename == str(tmp_path / "whole.wav")
    with pytest.raises(OSError, match="Errno") as error, files.atomic(tmp_path / "whole.wav"):
        raise OSError(number, os.strerror(number), "elsewhere")
    assert error.value.filename == "elsewhere"
    with pytest.raises(OSError, match="Errno") as error, files.atomic(tmp_path / "whole.wav"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))  # perhaps of what the block reads
    assert error.value.filename is None
