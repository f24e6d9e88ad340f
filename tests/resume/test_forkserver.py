"""Stages run in copies of a process that has PyTorch loaded, and nobody can tell."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jukesep.base.errors import UserError
from jukesep.resume import forkserver

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="stages are copied on Linux only")

# In the place of DVC: runs each command that it reads, and answers with its result.
OWNER = """
import json, signal, subprocess, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell in the background ignores it
for line in sys.stdin:
    nothing = subprocess.DEVNULL
    made = subprocess.run(json.loads(line), capture_output=True, text=True, stdin=nothing)
    print(json.dumps([made.returncode, made.stdout, made.stderr]), flush=True)
"""

# In the place of a stage.
STAGE = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
from jukesep.base.errors import UserError, reported
from jukesep.resume import forkserver

VERSION = 1

if __name__ == "__main__":
    with reported():
        forkserver.enter()
        what, *arguments = sys.argv[1:]
        print("to stderr", file=sys.stderr)
        if what == "tell":
            print(json.dumps({
                "arguments": arguments, "folder": os.getcwd(), "torch": "torch" in sys.modules,
                "version": VERSION, "stage": os.environ["DVC_STAGE"], "parent": os.getppid(),
                "name": sys.modules["__main__"].__spec__.name, "file": __file__,
                "tty": sys.stdout.isatty(), "input": sys.stdin.read(),
                "sigchld": signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL,
                "child": subprocess.run(["false"]).returncode,
            }))
        elif what == "exit":
            sys.exit(int(arguments[0]) if arguments[0].isdecimal() else arguments[0])
        elif what == "error":
            raise UserError("a message")
        elif what == "traceback":
            raise ValueError("a fault")
        elif what == "full":
            with open("/dev/full", "w") as file:
                file.write("x")
        elif what == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "again":  # as a training starts the next one beside it
            made = subprocess.run([sys.executable, "-m", "stage", "tell"], capture_output=True)
            sys.stdout.write(made.stdout.decode())
        elif what == "wait":
            signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
            Path("waits").write_text(str(os.getpid()))
            time.sleep(60)
"""


class Owner:
    """A process that stages believe to be DVC's."""

    def __init__(self, folder):
        self.folder = folder
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "DVC_STAGE": "stage"}
        environment.pop(forkserver.VARIABLE, None)
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWNER], cwd=folder, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def begin(self, *arguments):
        self.process.stdin.write(json.dumps([sys.executable, "-m", "stage", *arguments]) + "\n")
        self.process.stdin.flush()

    def result(self):
        return json.loads(self.process.stdout.readline())

    def run(self, *arguments):
        self.begin(*arguments)
        return self.result()

    def tell(self, *arguments):
        status, said, error = self.run("tell", *arguments)
        assert (status, error) == (0, "to stderr\n"), error
        return json.loads(said)

    def serve(self):
        """Run stages until one is a copy; the server's id."""
        told = until(lambda: (told := self.tell())["torch"] and told)
        assert told["parent"] != self.process.pid
        return told["parent"]

    def end(self):
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def owner(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages")
    (folder / "stage.py").write_text(STAGE)
    made = Owner(folder)
    try:
        assert not made.tell()["torch"], "the first stage loads what it needs itself"
        made.serve()
        yield made
    finally:
        made.end()


def stages_of(owner):
    """The processes of `python -m stage` that wait below the owner."""
    found = Path(f"/proc/{owner.process.pid}/task/{owner.process.pid}/children").read_text()
    return [int(one) for one in found.split()]


def until(true):
    for _ in range(200):
        if found := true():
            return found
        time.sleep(0.05)
    raise AssertionError("nothing happened for 10 s")


def test_a_copy_is_the_stage_in_all_but_its_parent(owner):
    told = owner.tell("drums", "two words")
    parent = told.pop("parent")
    assert parent != owner.process.pid
    assert told == {
        "arguments": ["drums", "two words"], "folder": str(owner.folder), "torch": True,
        "version": 1, "stage": "stage", "name": "stage", "file": str(owner.folder / "stage.py"),
        "tty": False, "input": "", "sigchld": True, "child": 1,
    }  # fmt: skip
    assert owner.tell()["parent"] == parent, "one server for all stages"


def test_a_copy_runs_the_code_as_it_is_then(owner):
    """Also that of a module that the server has."""
    (owner.folder / "stage.py").write_text(STAGE.replace("VERSION = 1", "VERSION = 1 + 1"))
    shutil.copytree(ROOT / "jukesep", owner.folder / "jukesep")
    errors = (ROOT / "jukesep/base/errors.py").read_text().replace('"error: ', '"mistake: ')
    (owner.folder / "jukesep/base/errors.py").write_text(errors)
    try:
        assert owner.tell()["version"] == 2
        assert owner.run("error")[2] == "to stderr\nmistake: a message\n"
    finally:
        (owner.folder / "stage.py").write_text(STAGE)
        shutil.rmtree(owner.folder / "jukesep")


def test_what_a_copy_starts_asks_the_same_server(owner):
    status, said, _ = owner.run("again")
    assert status == 0
    child = json.loads(said)
    assert child["torch"]
    assert child["parent"] == owner.tell()["parent"]


@pytest.mark.parametrize(
    ("arguments", "status", "error"),
    [
        (("exit", "0"), 0, ""),
        (("exit", "7"), 7, ""),
        (("exit", "some words"), 1, "some words\n"),
        (("error",), 1, "error: a message\n"),
        (("killed",), 137, ""),
        (("full",), 1, "error: No space left on device. Free some space.\n"),
    ],
)
def test_the_status_and_the_words_of_a_copy_are_those_of_the_stage(owner, arguments, status, error):
    assert owner.run(*arguments) == [status, "", f"to stderr\n{error}"]


def test_a_fault_shows_its_traceback(owner):
    status, said, error = owner.run("traceback")
    assert (status, said) == (1, "")
    assert error.startswith("to stderr\nTraceback")
    assert error.endswith("ValueError: a fault\n")


def test_a_stage_that_is_stopped_stops_its_copy(owner):
    owner.begin("wait")
    copy = until(lambda: waiting(owner))
    (stage,) = stages_of(owner)

    def state(process):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]

    os.kill(stage, signal.SIGTSTP)
    until(lambda: (state(stage), state(copy)) == ("T", "T"))
    os.kill(stage, signal.SIGCONT)
    until(lambda: (state(stage), state(copy)) == ("S", "S"))
    os.kill(stage, signal.SIGTERM)
    assert owner.result()[0] == 1


@pytest.mark.parametrize(
    ("number", "status", "error"),
    [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 1, "ended by SIGTERM\n")],
)
def test_signals_reach_the_copy(owner, number, status, error):
    owner.begin("wait")
    copy = int(until(lambda: waiting(owner)))
    (stage,) = stages_of(owner)
    assert copy != stage
    os.kill(stage, number)
    assert owner.result() == [status, "", f"to stderr\n{error}"]


def test_a_copy_ends_with_the_process_of_its_stage(owner):
    owner.begin("wait")
    copy = until(lambda: waiting(owner))
    (stage,) = stages_of(owner)
    os.kill(stage, signal.SIGKILL)
    assert owner.result() == [-signal.SIGKILL, "", "to stderr\nended by SIGTERM\n"]
    until(lambda: not Path(f"/proc/{copy}").exists())


def waiting(owner):
    """The id of a copy that waits; the file that has it is gone then."""
    file = owner.folder / "waits"
    found = file.read_text() if file.exists() else ""
    if found:
        file.unlink()
    return found


def test_the_server_and_its_copies_end_with_dvc(tmp_path):
    (tmp_path / "stage.py").write_text(STAGE)
    owner = Owner(tmp_path)
    server = owner.serve()
    owner.begin("wait")
    copy = until(lambda: waiting(owner))
    (stage,) = stages_of(owner)
    assert Path(f"/proc/{server}").exists()
    owner.end()
    for process in (server, copy, stage):
        until(lambda process=process: not Path(f"/proc/{process}").exists())


def test_a_stage_runs_itself_where_the_server_fails(tmp_path):
    # A server that cannot load what it should ends, with a stage in its queue or before.
    (tmp_path / "stage.py").write_text(STAGE)
    (tmp_path / "soundfile.py").write_text("raise OSError('damaged')")
    owner = Owner(tmp_path)
    try:
        for _ in range(3):
            assert not owner.tell()["torch"]
    finally:
        owner.end()


def test_only_processes_of_this_user_and_container_are_trusted(monkeypatch):
    ours, other = socket.socketpair()
    with ours, other:
        assert forkserver._is_ours(ours)
        with monkeypatch.context() as patch:
            patch.setattr(os, "getuid", lambda: 12345)
            assert not forkserver._is_ours(ours)
        monkeypatch.setattr(os, "readlink", lambda name: name)  # namespaces that differ
        assert not forkserver._is_ours(ours)


def test_there_is_no_server_without_dvc(monkeypatch):
    def nothing(*_):
        raise AssertionError("started")

    monkeypatch.setattr(forkserver, "_start", nothing)
    monkeypatch.setattr(forkserver, "_run_in_copy", nothing)
    monkeypatch.delenv(forkserver.VARIABLE, raising=False)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    forkserver.enter()
    monkeypatch.setenv("DVC_STAGE", "stage")
    with monkeypatch.context() as patch:
        patch.setattr(forkserver, "_is_python", lambda _: False)  # a shell that waits for it
        forkserver.enter()
    monkeypatch.setattr(forkserver, "_is_python", lambda _: True)
    with pytest.raises(AssertionError, match="started"):
        forkserver.enter()
    monkeypatch.delenv(forkserver.VARIABLE)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    forkserver.enter()
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    monkeypatch.setenv(forkserver.VARIABLE, "off")
    forkserver.enter()
    monkeypatch.setenv(forkserver.VARIABLE, f"1:{os.getpid()}")  # in a copy
    forkserver.enter()
    monkeypatch.setenv(forkserver.VARIABLE, "on")
    with pytest.raises(UserError, match="JUKESEP_FORKSERVER=on: no such value"):
        forkserver.enter()
