"""Where compiled functions are kept, and what the user is told. It holds what we use of numba."""

import ast
import contextlib
import errno
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FunctionType, SimpleNamespace

import numba
import pytest

from jukesep.base import progress
from jukesep.base.errors import UserError
from jukesep.kernels.cpu import compiled

ROOT = Path(__file__).parents[2]
LINE = "jukesep: compiling the CPU kernels for this machine (once, about 15 s)\n"
# One small kernel, for two types: numba compiles it twice.
SEARCH = """
import torch
from jukesep.kernels.cpu import codebook

def search(_=0):
    for number in (torch.float32, torch.float64):
        codebook.nearest(torch.zeros(1, 2, 3, dtype=number), torch.ones(4, 2, dtype=number))
    return codebook._first_smallest.stats
"""
COUNT = (
    SEARCH
    + """
stats = search()
print(codebook.__file__, sum(stats.cache_misses.values()), sum(stats.cache_hits.values()))
"""
)
IN_A_WORKER = (
    SEARCH
    + """
from torch.utils.data import DataLoader

class Searches(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return sum(search().cache_misses.values())

print(*DataLoader(Searches(), num_workers=1, multiprocessing_context="fork"))
"""
)


@pytest.fixture
def run(tmp_path):
    """Runs code in a process whose cache is in tmp_path: its output and errors."""

    def run(code, root=ROOT, cache="cache", stderr=subprocess.PIPE):
        env = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
        env |= {"XDG_CACHE_HOME": str(tmp_path / cache), "PYTHONPATH": str(root)}
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=stderr, text=True, check=True,
        )  # fmt: skip
        return done.stdout.split(), done.stderr

    return run


def copy(root):
    shutil.copytree(ROOT / "jukesep", root / "jukesep", ignore=shutil.ignore_patterns("*cache*"))
    return root


@pytest.mark.skipif(sys.platform != "linux", reason="XDG_CACHE_HOME is Linux's")
def test_functions_are_compiled_once_for_all_copies_of_the_source(run, tmp_path):
    (_, misses, _), said = run(COUNT)
    assert said == LINE
    assert misses == "2"

    other = copy(tmp_path / "other")
    (file, misses, hits), said = run(COUNT, other)
    assert Path(file).is_relative_to(other)
    assert (misses, hits, said) == ("0", "2", "")
    assert not list(other.rglob("*.nbc")), "kept beside the source"

    # What one file defines becomes part of functions of others.
    with (other / "jukesep/kernels/cpu/tiles.py").open("a") as source:
        source.write("# changed\n")
    (_, misses, _), said = run(COUNT, other)
    assert (misses, said) == ("2", LINE)


def test_a_terminal_shows_a_bar(run):
    termios = pytest.importorskip("termios", reason="this system has no terminals")
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    with ThreadPoolExecutor(1) as reader, open(theirs, "wb") as terminal:
        reading = reader.submit(_everything, ours)  # at once: a terminal holds a few lines only
        run(COUNT, stderr=terminal)
        terminal.close()
        said = reading.result()
    os.close(ours)
    assert said.count(LINE.strip().encode()) == 1
    assert b"compiling first_smallest: " in said
    assert b" functions" in said


def _everything(terminal):
    """What is written to a terminal until it is closed."""
    said = b""
    with contextlib.suppress(OSError):  # Linux's end of file
        while part := os.read(terminal, 2**16):
            said += part
    return said


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux")
def test_a_process_that_prepares_batches_compiles_without_a_word(run):
    assert run(IN_A_WORKER) == (["tensor([2])"], "")


@pytest.mark.skipif(sys.platform != "linux", reason="XDG_CACHE_HOME is Linux's")
def test_where_nothing_can_be_written_it_compiles_and_says_so_once(run, tmp_path):
    root = copy(tmp_path / "copy")
    (root / "jukesep/kernels/cpu/__pycache__").touch()
    (tmp_path / "file").touch()
    (_, misses, _), said = run(COUNT, root, cache="file")
    assert misses == "2"
    assert said == (
        f"{LINE}jukesep: compiled code cannot be kept ({tmp_path}/file/jukesep/compiled: Not a "
        "directory). Each process compiles again. Set NUMBA_CACHE_DIR to a writable folder.\n"
    )


def double(x):
    return 2 * x


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Calls `double` as a new process would, its code in tmp_path: whether it was compiled anew."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "chosen"))
    monkeypatch.setattr(compiled, "user_cache_path", lambda _: tmp_path / "user")
    progress.note.cache_clear()

    def call(x=2):
        made = compiled.compiled(double)
        assert made(x) == 2 * x
        return bool(made.stats.cache_misses)

    return call


def only(folder):
    (file,) = folder.rglob("*.nbc")
    return file


def _of_another_function(file):
    compiled.compiled(lambda x: 3 * x)(2)
    (other,) = set(file.parent.iterdir()) - {file}
    other.rename(file)


DAMAGES = {
    "empty": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-1000]),
    "cut in the digest": lambda file: file.write_bytes(file.read_bytes()[:20]),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "other bytes": lambda file: file.write_bytes(file.read_bytes()[:-9] + b"\0otherbits"[:9]),
    "no digest": lambda file: file.write_bytes(file.read_bytes()[64:]),
    "another pickle": lambda file: file.write_bytes(pickle.dumps({"a": 1})),
    "of another function": _of_another_function,
    "of another type": lambda file: file.write_bytes(only(other_type(file)).read_bytes()),
    "missing": lambda file: file.unlink(),
}


def other_type(file):
    """A folder with what `double` is compiled to for floats."""
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(file.parents[2] / "floats")
    compiled.compiled(double)(2.0)
    numba.config.CACHE_DIR, found = before, Path(numba.config.CACHE_DIR)
    return found


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_compiled_anew_and_replaced(kept, tmp_path, damage, capsys):
    assert kept()
    assert not kept()
    damage(only(tmp_path / "chosen"))
    assert kept()
    assert not kept()
    assert capsys.readouterr().err == LINE


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_file_that_others_can_write_to_is_not_loaded(kept, tmp_path, mode, capsys):
    """Loading a file runs it."""
    kept()
    file = only(tmp_path / "chosen")
    file.chmod(mode)
    assert kept()
    assert f"{file.parent} is not used: other users can write to it" in capsys.readouterr().err
    assert not kept()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such owners")
def test_a_file_of_another_user_is_not_loaded():
    def trusted(owner):
        return compiled._trusted(SimpleNamespace(st_uid=owner, st_mode=0o100644))

    assert trusted(os.geteuid())
    assert trusted(0), "an administrator's"
    assert trusted(Path(compiled.__file__).stat().st_uid), "the source's owner's"
    assert not trusted(54321)


def test_a_full_disk_keeps_nothing_and_is_named_once(kept, tmp_path, monkeypatch, capsys):
    write = Path.write_bytes

    def half(path, content):
        write(path, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    assert kept(2)
    assert kept(2.0)
    said = f"compiled code cannot be kept ({tmp_path}/chosen: No space left on device)."
    assert capsys.readouterr().err.startswith(f"{LINE}jukesep: {said} Each process ")
    assert not list(tmp_path.rglob("*"))


def test_the_next_folder_is_used_where_one_cannot_be_written_to(kept, tmp_path, capsys):
    (tmp_path / "chosen").touch()
    assert kept()
    assert not kept()
    assert only(tmp_path / "user")
    assert capsys.readouterr().err == LINE


def test_the_digest_covers_every_file_whose_constants_are_compiled_in():
    """numba copies constants into the code: `SOURCE` of network.py is a number in passes.py's."""
    folder = Path(compiled.__file__).parent
    imported = {
        (folder.parent / f"{node.module}.py")
        for file in folder.glob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level == 2 and node.module
    }
    assert folder.parent / "network.py" in imported
    for file in imported:
        assert file.read_bytes() in compiled._source()


def test_a_user_without_a_home_folder_keeps_it_beside_the_source(monkeypatch):
    def none(_):
        raise RuntimeError("could not determine the home directory")

    monkeypatch.setattr(compiled, "user_cache_path", none)
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    (folder,) = compiled.folders()
    assert folder.parent == Path(compiled.__file__).parent / "__pycache__"


def test_what_is_kept_is_named_by_function_module_signature_and_processor():
    """numba's files name the module, and cannot be loaded when it has moved."""
    moved = FunctionType(double.__code__, {"__name__": "elsewhere"}, "double")
    moved.__module__ = "elsewhere"

    def name(function=double, sig=(numba.int64,), processor="one"):
        codegen = SimpleNamespace(magic_tuple=lambda: ("triple", processor, "+avx2"))
        return compiled._Kept(function)._file(sig, codegen)[0]

    names = {name(), name(moved), name(sig=(numba.int32,)), name(processor="another"), name(only)}
    assert len(names) == 5
    assert name() in names


def test_numba_told_not_to_compile_ends_in_one_line(monkeypatch):
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    with pytest.raises(UserError, match="NUMBA_DISABLE_JIT is set"):
        compiled.compiled(double)
