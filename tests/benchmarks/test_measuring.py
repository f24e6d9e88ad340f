"""How the benchmarks measure: in turns, in processes of their own, and of which code."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import measuring
from jukesep.base.errors import UserError

on_linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks through /proc")


def test_turns_are_taken_and_the_first_is_not_counted():
    order = []
    steps = {name: lambda name=name: order.append(name) for name in "ab"}
    taken = measuring.interleaved(steps, 0, least=2)
    assert "".join(order) == "ababab"
    assert [len(runs) for runs in taken.values()] == [2, 2]
    taken = measuring.interleaved({"slow": lambda: time.sleep(0.01)}, 60, most=3)
    assert len(taken["slow"]) == 3
    assert min(taken["slow"]) >= 0.01


def test_a_fresh_process_is_held_to_its_cores():
    assert measuring.fresh(1, measuring.cores) == 1
    assert measuring.fresh(1, measuring.machine)["cores"] == 1
    assert measuring.fresh(0, os.getpid) != os.getpid()


def test_a_killed_process_is_a_message():
    with pytest.raises(UserError, match="killed"):
        measuring.fresh(0, os.abort)


@on_linux
def test_a_process_ends_with_the_one_that_started_it(tmp_path):
    said = tmp_path / "pid"
    inner = f"import os, time; open({str(said)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = f"from benchmarks import measuring; measuring.fresh(0, exec, {inner!r})"
    with subprocess.Popen([sys.executable, "-c", code], cwd=measuring.ROOT) as parent:
        _wait_for(lambda: said.exists() and said.read_text())
        parent.kill()
    status = Path(f"/proc/{said.read_text()}/status")
    _wait_for(lambda: not status.exists() or "State:\tZ" in status.read_text())


def _wait_for(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@on_linux
def test_memory_is_that_of_the_process_alone():
    """Not of this one, which once had more."""
    before = np.ones(50_000_000)
    del before
    assert measuring.fresh(0, measuring.highest) < 200e6 < 400e6 < measuring.highest()


def test_code_is_told_apart_by_the_files_that_a_row_names(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "ROOT", tmp_path)
    for name in ("kernels/cpu.py", "report/listen.py", "row.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    named = ("kernels", "row.py")
    first = measuring.code(named)
    assert first["commit"] == ""
    (tmp_path / "report/listen.py").write_text("2")
    assert measuring.code(named) == first
    found = {first["digest"]}
    for name in ("kernels/cpu.py", "row.py"):
        (tmp_path / name).write_text("2")
        found.add(measuring.code(named)["digest"])
    assert len(found) == 3
