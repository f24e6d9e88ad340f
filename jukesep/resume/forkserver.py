"""Stages run in copies of a process that has PyTorch loaded.

DVC starts each stage as a process of its own, and most of them need PyTorch, which takes seconds to
load. So the first of them starts a server that loads it too, and waits. The next ones have the
server fork: the copy runs the stage, with its arguments, environment, folder and standard streams.
The stage's own process passes signals on, and ends with the copy's status. The server ends with
DVC. It keeps no code of jukesep: each copy imports the current code.

Used only on Linux and under DVC. Results do not depend on it. JUKESEP_FORKSERVER=off turns it off.
"""

from __future__ import annotations

import gc
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
from contextlib import suppress
from typing import Any

from ..base.errors import UserError

VARIABLE = "JUKESEP_FORKSERVER"
"""The switch: `auto`, the default, or `off`. Below a stage: "DVC's process id:who set this"."""
PRELOADED = (
    *("soundfile", "yaml", "filelock", "tqdm", "pydantic", "omegaconf", "hydra"),
    *("scipy.fft", "scipy.signal", "numba", "torch", "torch.utils.data"),
)
_STREAMS = (0, 1, 2)
_NUMBER = struct.Struct("i")
_PATIENCE = 10.0  # s, for a stage to say what to run


def enter() -> None:
    """Run this script in a copy of the server, and exit with its status.

    Returns where the script should go on: in the copy, and where there is no server. If it can, it
    then starts one for the next stages. UserError for an unknown value of JUKESEP_FORKSERVER.
    """
    value = os.environ.get(VARIABLE, "auto")
    owner, _, setter = value.partition(":")
    if value not in ("auto", "off") and not (owner.isdecimal() and setter.isdecimal()):
        raise UserError(f"{VARIABLE}={value}: no such value; set it to auto or off.")
    if value == "off" or setter == str(os.getpid()) or not hasattr(os, "pidfd_open"):
        return
    if "DVC_STAGE" not in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
        return
    dvc = int(owner) if setter else os.getppid()
    if not setter and not _is_python(dvc):  # a shell, which ends with the stage
        return
    os.environ[VARIABLE] = f"{dvc}:{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(_address(dvc))
        except OSError:
            _start(dvc)
            return
        if _is_ours(connection):
            status = _run_in_copy(connection)
            if status is not None:
                sys.exit(status)


def _is_python(process: int) -> bool:
    with suppress(OSError):
        return os.path.basename(os.readlink(f"/proc/{process}/exe")).startswith("python")
    return False


def _address(owner: int) -> str:
    """Where the server of a process listens: a name that needs no file, and ends with the server.

    Any user can listen at such a name, and connect to it, also from other containers.
    """
    return f"\0jukesep-{os.getuid()}-{owner}"


def _is_ours(connection: socket.socket) -> bool:
    """Whether the other end is this user's, and sees the same processes and files."""
    form = "3i"  # process, user, group
    size = struct.calcsize(form)
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    process, user, _ = struct.unpack(form, peer)
    with suppress(OSError):
        return user == os.getuid() and all(
            os.readlink(f"/proc/{process}/ns/{kind}") == os.readlink(f"/proc/self/ns/{kind}")
            for kind in ("pid", "mnt")
        )
    return False


def _start(owner: int) -> None:
    nothing = subprocess.DEVNULL
    subprocess.Popen(
        [sys.executable, "-m", __spec__.name, str(owner)],
        stdin=nothing,
        stdout=nothing,
        stderr=nothing,
        start_new_session=True,
    )


def _run_in_copy(connection: socket.socket) -> int | None:
    """Have a copy run this script; its exit status, or None if the server made none.

    Signals go to the copy's process group, as those of a terminal do: to what it starts as well.
    """
    from ..base.signals import handled, when_orphaned

    main: Any = sys.modules["__main__"]
    stage = {
        "module": main.__spec__.name,
        "arguments": sys.argv[1:],
        "folder": os.getcwd(),
        "environment": dict(os.environ),
    }
    text = json.dumps(stage).encode() + b"\n"
    try:
        sent = socket.send_fds(connection, [text], _STREAMS)
        connection.sendall(text[sent:])
        copy = _number(connection)
    except OSError:
        return None
    if copy is None:
        return None

    def pass_on(number: int, _: object = None, group: int = copy) -> None:
        with suppress(ProcessLookupError):
            os.killpg(group, number)

    def pause(*_: object) -> None:
        pass_on(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)  # until SIGCONT
        pass_on(signal.SIGCONT)

    signal.signal(signal.SIGTSTP, pause)
    when_orphaned(lambda: pass_on(signal.SIGTERM))
    with handled(pass_on):
        status = _number(connection)
    if status is not None:
        return status
    print(f"error: {VARIABLE}: the server was killed. Run the command again.", file=sys.stderr)
    return 1


def _number(connection: socket.socket) -> int | None:
    """A number that the server sends; None if it has ended."""
    sent = b""
    with suppress(ConnectionError):
        sent = connection.recv(_NUMBER.size, socket.MSG_WAITALL)
    return _NUMBER.unpack(sent)[0] if sent else None


def serve(owner: int) -> tuple[socket.socket, dict[str, Any]] | None:
    """Load what stages need, and fork for each that asks, until the owner's process ends.

    Returns None then. In a copy, returns the connection to the stage's process, and what it runs.
    """
    copies: dict[int, socket.socket] = {}  # the connections, by what `select` waits for
    ended = os.pidfd_open(owner)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(_address(owner))  # fails if there is a server already
        listener.listen()  # stages that come while it loads wait
        for name in PRELOADED:
            with suppress(ImportError):
                importlib.import_module(name)
            if select.select([ended], [], [], 0)[0]:
                return None
        gc.freeze()  # so that copies do not look for cycles among all that is loaded
        while True:
            ready, *_ = select.select([listener.fileno(), ended, *copies], [], [])
            if ended in ready:
                return None
            for one in copies.keys() & set(ready):
                end: Any = os.waitid(os.P_PIDFD, one, os.WEXITED)
                status = end.si_status + (0 if end.si_code == os.CLD_EXITED else 128)
                with suppress(OSError), copies.pop(one) as connection:
                    connection.send(_NUMBER.pack(status))
                os.close(one)
            if listener.fileno() in ready and (asked := _asked(listener)):
                connection, stage, streams = asked
                if _fork(connection, copies):
                    for one, other in copies.items():
                        os.close(one)
                        other.close()
                    os.close(ended)
                    _take(streams)
                    return connection, stage
                for stream in streams:
                    os.close(stream)


def _fork(connection: socket.socket, copies: dict[int, socket.socket]) -> bool:
    """Make a copy, and tell the stage's process its id; whether this is the copy."""
    try:
        copy = os.fork()
        if not copy:
            return True
        os.setpgid(copy, copy)
        copies[os.pidfd_open(copy)] = connection
        connection.send(_NUMBER.pack(copy))
    except OSError:  # then the stage's process runs the stage
        connection.close()
    return False


def _asked(listener: socket.socket) -> tuple[socket.socket, dict[str, Any], list[int]] | None:
    """A stage's process that has connected, what it asks to run, and its standard streams.

    None for one that is not ours, or does not say.
    """
    connection: socket.socket | None = None
    streams: list[int] = []
    try:
        connection, _ = listener.accept()
        connection.settimeout(_PATIENCE)
        if _is_ours(connection):
            text, streams, *_ = socket.recv_fds(connection, 1 << 16, len(_STREAMS))
            while not text.endswith(b"\n"):
                more = connection.recv(1 << 16)
                if not more:
                    raise EOFError
                text += more
            connection.settimeout(None)
            return connection, json.loads(text), streams
    except (OSError, EOFError, ValueError):
        for stream in streams:
            os.close(stream)
    if connection:
        connection.close()
    return None


def _take(streams: list[int]) -> None:
    """Make the stage's standard streams those of this copy."""
    for stream, number in zip(streams, _STREAMS, strict=True):
        os.dup2(stream, number)
        os.close(stream)
    out: Any = sys.stdout
    out.reconfigure(line_buffering=os.isatty(1))


def become(connection: socket.socket, stage: dict[str, Any], owner: int) -> None:
    """In a copy: run the stage's script as `python -m` does."""
    with suppress(OSError):  # the server does it too: who comes first
        os.setpgid(0, 0)
    os.chdir(stage["folder"])
    os.environ.clear()
    os.environ.update(stage["environment"])
    os.environ[VARIABLE] = f"{owner}:{os.getpid()}"
    sys.argv[1:] = stage["arguments"]
    if not sys.flags.safe_path:
        sys.path[0] = stage["folder"]
    importlib.invalidate_caches()
    for name in [one for one in sys.modules if one.partition(".")[0] == "jukesep"]:
        del sys.modules[name]
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    runpy.run_module(stage["module"], run_name="__main__", alter_sys=True)


def _end_with(connection: socket.socket) -> None:
    """Send this copy SIGTERM when the stage's process ends."""
    with suppress(OSError):
        connection.recv(1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    dvc = int(sys.argv[1])
    if found := serve(dvc):
        become(*found, dvc)
