"""Run a training in several processes, by JUKESEP_NPROC or by torchrun.

    JUKESEP_NPROC=2 uv run dvc repro
    uv run torchrun --nproc-per-node 2 -m stages.stage1 vocals pretrained
    uv run torchrun --nnodes 2 --node-rank 0 --nproc-per-node 2 --master-addr HOST \\
        --master-port 29400 -m stages.stage1 vocals pretrained     # on HOST, one of two nodes
    uv run torchrun --nnodes 2 --node-rank 1 --nproc-per-node 2 --master-addr HOST \\
        --master-port 29400 -m stages.stage1 vocals pretrained     # on the other

The number of processes is an environment variable, not a parameter, because it changes results only
by rounding: DVC does not run a stage again for it.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import Any

from ..base.errors import Interrupted, UserError
from ..base.parallel import cores
from ..base.signals import ENDING, when_orphaned

PROCESSES = "JUKESEP_NPROC"


def asked() -> int:
    """Return the number of processes that JUKESEP_NPROC asks for. UserError if it is below 1."""
    value = os.environ.get(PROCESSES, "1")
    if not value.isdecimal() or int(value) < 1:
        raise UserError(f"{PROCESSES} is {value!r}. Set it to a number of processes, 1 or more.")
    return int(value)


def launch(batch: int, section: str) -> bool:
    """Run this script in several processes if the environment asks for it; return whether it did.

    The processes share a batch of `batch` segments, so their number must divide it. `section` names
    the parameter in messages. UserError if a process fails; it prints the reason itself, and the
    others are stopped. Interrupted after a signal.
    """
    wanted = asked()
    if wanted == 1 or "TORCHELASTIC_RUN_ID" in os.environ:
        return False
    processes = max(n for n in range(1, wanted + 1) if batch % n == 0)
    if processes < wanted:
        print(
            f"{section}.batch={batch} cannot be shared by {wanted} processes ({PROCESSES}): "
            f"using {processes}.",
            file=sys.stderr,
        )
    if processes == 1:
        return False
    _run(processes)
    return True


def _run(processes: int) -> None:
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Each process reports its own errors.
    logging.disable(logging.CRITICAL)
    if "DVC_STAGE" in os.environ:  # nothing collects the results once DVC has ended
        when_orphaned(lambda: os.kill(os.getpid(), signal.SIGTERM))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        run_id=str(os.getpid()),
    )
    main: Any = sys.modules["__main__"]
    # Run it with `python -m`, as this process was: then it imports the same code.
    command = ["-u", "-m", main.__spec__.name, *sys.argv[1:]]
    try:
        elastic_launch(config, sys.executable)(*command)
    except SignalException as error:
        raise Interrupted("", 128 + error.sigval) from None
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode - 128 in ENDING:
            raise Interrupted("", failure.exitcode) from None
        if failure.exitcode > 0:
            how, then = f"ended with status {failure.exitcode}", ""
        else:
            how = f"was killed by {signal.Signals(-failure.exitcode).name}"
            then = " The same command resumes from the last save."
        raise UserError(
            f"process {rank} of {processes} {how}; the others were stopped.{then}"
        ) from None
