"""Train one model in several processes: sums and broadcasts, which do nothing in one process.

torchrun passes the rank to each process in environment variables. Each process takes an equal share
of the batch, in the order of the ranks. The means and sums over the processes equal those that one
process computes on the whole batch.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..base.errors import UserError


def launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ


def rank() -> int:
    """The number of this process. Only process 0 writes files."""
    return dist.get_rank() if _together() else 0


def world_size() -> int:
    """The number of processes that train."""
    return dist.get_world_size() if _together() else 1


@contextmanager
def group(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that torchrun started; yield the device of this process.

    Each process gets its own GPU, by local rank. The backend is NCCL on GPUs and gloo elsewhere.
    UserError if this machine has fewer GPUs than processes.
    """
    if not launched():
        yield device
        return
    if device.type == "mps":
        raise UserError(
            "Several processes cannot share an MPS device: set device=cpu, or run one process."
        )
    local, here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if device.type == "cuda":
        if here > torch.cuda.device_count():
            raise UserError(
                f"{here} processes on this machine, but {torch.cuda.device_count()} GPUs. Each "
                "process needs its own: lower JUKESEP_NPROC (torchrun: --nproc-per-node)."
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def share(batch: int, section: str) -> int:
    """The segments of a batch for each process. UserError if the batch cannot be split evenly."""
    processes = world_size()
    if batch % processes:
        raise UserError(
            f"{section}.batch={batch} cannot be split evenly over {processes} processes. Change "
            "one of the two numbers."
        )
    return batch // processes


def parallel(module: nn.Module, device: torch.device) -> nn.Module:
    """Wrap `module` so that its gradients are averaged over the processes."""
    if not _together():
        return module
    wrap: Any = nn.parallel.DistributedDataParallel
    # The codebook sums its own buffers, so they are equal everywhere. The newer name comes first.
    names = ("forward_sync_buffers", "broadcast_buffers")
    name = next(name for name in names if name in inspect.signature(wrap).parameters)
    ids = [device] if device.type == "cuda" else None
    wrapped: nn.Module = wrap(module, device_ids=ids, **{name: False})
    return wrapped


def sum_(tensor: Tensor) -> Tensor:
    """Sum over the processes, in place."""
    if _together():
        dist.all_reduce(tensor)
    return tensor


def first_(tensor: Tensor) -> Tensor:
    """Copy the tensor of process 0 to all processes, in place."""
    if _together():
        dist.broadcast(tensor, src=0)
    return tensor


def means(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean over the processes of each scalar."""
    if not _together():
        return dict(values)
    total = sum_(torch.stack([value.detach().float() for value in values.values()]))
    return dict(zip(values, total / world_size(), strict=True))


def any_(here: bool, device: torch.device) -> bool:
    """Whether `here` is true in any process."""
    return bool(sum_(torch.tensor(float(here), device=device))) if _together() else here


def same(value: Any) -> Any:
    """Return the value of process 0 in all processes."""
    if not _together():
        return value
    held = [value]
    dist.broadcast_object_list(held, src=0)
    return held[0]


def wait() -> None:
    """Wait until all processes have called this."""
    if _together():
        dist.barrier()


def lost(error: BaseException) -> bool:
    """Whether an error means that another process has ended; that process reports the reason."""
    known = ("gloo", "NCCL", "ProcessGroup", "Connection closed by peer", "TCPStore")
    return (
        launched() and isinstance(error, RuntimeError) and any(name in str(error) for name in known)
    )


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()
