"""Stages run in copies of a process that has PyTorch loaded.

DVC starts each stage as a process of its own, and most of them need PyTorch, which takes seconds to
load. So the first of them starts a server that loads it too, and waits. The next ones have the
server fork: the copy runs the stage, with its arguments, environment, folder and standard streams.
The stage's own process passes signals on, and ends with the copy's status. The server ends with
DVC, and holds no code of jukesep: each copy imports the code as it is then.

Only on Linux and under DVC. No result depends on it: JUKESEP_FORKSERVER=off does without.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from .errors import UserError

VARIABLE = "JUKESEP_FORKSERVER"
"""The switch: `auto`, the default, or `off`. Below a stage, "DVC's process id:the copy's own"."""
PRELOADED = ("soundfile", "scipy.fft", "scipy.signal", "numba", "torch", "torch.utils.data")
PRELOADED_IF_THERE = ("hydra", "omegaconf", "pydantic", "yaml", "filelock", "tqdm")
_STREAMS = (0, 1, 2)
_KILLED = 128 + 9  # the exit status, as a shell reports it


def enter() -> None:
    """Run this script in a copy of the server, and exit with its status.

    Returns in the copy, and where there is no server yet: then it starts one for the next stages.
    UserError for an unknown value of JUKESEP_FORKSERVER.
    """
    value = os.environ.get(VARIABLE, "auto")
    owner, _, copy = value.partition(":")
    if value not in ("auto", "off") and not (owner.isdecimal() and copy.isdecimal()):
        raise UserError(f"{VARIABLE}={value}: no such value; set it to auto or off.")
    if value == "off" or copy == str(os.getpid()) or sys.platform != "linux":
        return
    if "DVC_STAGE" not in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
        return
    dvc = int(owner) if copy else os.getppid()
    if not copy and not _is_python(dvc):  # a shell, which ends with the stage
        return
    os.environ[VARIABLE] = f"{dvc}:{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(_address(dvc))
        except OSError:
            _start(dvc)
            return
        if _user(connection) == os.getuid():
            status = _run_in_copy(connection, dvc)
            if status is not None:
                sys.exit(status)


def _is_python(process: int) -> bool:
    with suppress(OSError):
        return os.path.basename(os.readlink(f"/proc/{process}/exe")).startswith("python")
    return False


def _address(owner: int) -> str:
    """Where the server of a process listens: a name that needs no file, and ends with it."""
    return f"\0jukesep-{os.getuid()}-{owner}"


def _user(connection: socket.socket) -> int:
    """The user at the other end. Others can use the name too."""
    form = "3i"  # process, user, group
    size = struct.calcsize(form)
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return int(struct.unpack(form, peer)[1])


def _start(owner: int) -> None:
    nothing = subprocess.DEVNULL
    subprocess.Popen(
        [sys.executable, "-m", __spec__.name, str(owner)],
        stdin=nothing,
        stdout=nothing,
        stderr=nothing,
        start_new_session=True,
    )


def _run_in_copy(connection: socket.socket, owner: int) -> int | None:
    """Have a copy run this script; its exit status, or None if the server made none."""
    from .signals import handled

    main: Any = sys.modules["__main__"]
    stage = {
        "module": main.__spec__.name,
        "arguments": sys.argv[1:],
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "owner": owner,
    }
    text = json.dumps(stage).encode() + b"\n"
    try:
        sent = socket.send_fds(connection, [text], _STREAMS)
        connection.sendall(text[sent:])
        _, processes, *_ = socket.recv_fds(connection, 1, 1)
    except OSError:
        return None
    if not processes:
        return None

    def pass_on(number: int, _: object) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(processes[0], number)

    with handled(pass_on):
        select.select(processes, [], [])
    said = connection.recv(16)
    if said:
        return int(said)
    print(f"error: the process of {stage['module']} was killed.", file=sys.stderr)
    return _KILLED


def serve(owner: int) -> tuple[socket.socket, dict[str, Any]] | None:
    """Load what stages need, and fork for each that asks, until the owner's process ends.

    Returns None then. In a copy, returns the connection to the stage's process, and what it runs.
    """
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(_address(owner))  # fails if there is a server already
        listener.listen()  # stages that come while it loads wait
        ended = os.pidfd_open(owner)
        for name in PRELOADED:
            importlib.import_module(name)
        for name in PRELOADED_IF_THERE:
            with suppress(ImportError):
                importlib.import_module(name)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no copy has to be waited for
        while True:
            ready, *_ = select.select([listener.fileno(), ended], [], [])
            if ended in ready:
                return None
            connection, _ = listener.accept()
            if _user(connection) != os.getuid():
                connection.close()
                continue
            stage, streams = _received(connection)
            if stage is not None and not os.fork():
                os.close(ended)
                _take(streams)
                return connection, stage
            for stream in streams:
                os.close(stream)
            connection.close()


def _received(connection: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """What a stage's process sent: what to run, None if it has ended, and its streams."""
    text, streams, *_ = socket.recv_fds(connection, 1 << 16, len(_STREAMS))
    while not text.endswith(b"\n"):
        more = connection.recv(1 << 16)
        if not more:
            return None, streams
        text += more
    return json.loads(text), streams


def _take(streams: Sequence[int]) -> None:
    """Make the stage's standard streams those of this copy."""
    for stream, number in zip(streams, _STREAMS, strict=True):
        os.dup2(stream, number)
        os.close(stream)
    by_line = 1
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", by_line if os.isatty(1) else -1, closefd=False)
    sys.stderr = os.fdopen(2, "w", by_line, errors="backslashreplace", closefd=False)


def become(connection: socket.socket, stage: dict[str, Any]) -> None:
    """In a copy: run the stage's script as `python -m` does, and report its exit status."""
    own = os.pidfd_open(os.getpid())
    socket.send_fds(connection, [b"."], [own])
    os.close(own)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.chdir(stage["folder"])
    os.environ.clear()
    os.environ.update(stage["environment"])
    os.environ[VARIABLE] = f"{stage['owner']}:{os.getpid()}"
    sys.argv[1:] = stage["arguments"]
    sys.path[0] = stage["folder"]
    for name in [one for one in sys.modules if one.partition(".")[0] == "jukesep"]:
        del sys.modules[name]
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    status = 1
    try:
        runpy.run_module(stage["module"], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        raise
    except KeyboardInterrupt:
        status = 130
        raise
    finally:
        with suppress(OSError):
            connection.send(str(status).encode())


def _end_with(connection: socket.socket) -> None:
    """Wait for the end of the stage's process: for its copy that is a SIGTERM."""
    with suppress(OSError):
        connection.recv(1)
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    found = None
    with suppress(OSError):  # without a server, stages load PyTorch themselves
        found = serve(int(sys.argv[1]))
    if found:
        become(*found)
