"""Several processes on one job: each runs some of the batches and solves some of the matrices.

They are started by ``torchrun`` and find each other by the variables it sets. Sums over batches are
added up over all processes, so that every one has the statistics of all the data; a matrix is
solved by its owner and copied to the others. A team of one does nothing of this.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from edgesparse.errors import DeviceError, UsageError

T = TypeVar("T")
PATIENCE = timedelta(minutes=30)  # for the slowest: it may be packing a matrix of a billion weights


class Team:
    """The processes of one job; without arguments, one alone.

    Attributes:
        rank: Which of them this is.
        size: How many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and speaks for all."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return this process's part of ``items``.

        Raises:
            UsageError: There are fewer than processes.
        """
        if len(items) < self.size:
            raise UsageError(
                f"{len(items)} calibration batches for {self.size} processes; give more data or "
                "start fewer"
            )
        return items if self.size == 1 else items[self.rank :: self.size]

    def add_up(self, *values: Tensor | None) -> None:
        """Replace every tensor by its sum over all processes, in place."""
        if self.size > 1:
            with _together():
                for value in values:
                    if value is not None:
                        distributed.all_reduce(value)

    def copy_from(self, owner: int, value: Tensor) -> None:
        """Overwrite ``value`` with the owner's."""
        if self.size > 1:
            with _together():
                distributed.broadcast(value, owner)

    def gather(self, value: T) -> list[T]:
        """Return every process's ``value``, in order of rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        with _together():
            distributed.all_gather_object(found, value)
        return found

    def together(self) -> AbstractContextManager[None]:
        """Return a context in which torch's own word for a lost process is ours, DeviceError."""
        return nullcontext() if self.size == 1 else _together()

    def agree(self, value: T) -> T:
        """Return the leader's ``value``."""
        return self.gather(value)[0]


@contextmanager
def joined(device: str) -> Iterator[tuple[Team, str]]:
    """Join the processes that ``torchrun`` started, if it did; yield the team and the own device.

    Raises:
        UsageError: Half of the variables that it sets.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Team(), device
        return
    if "RANK" not in os.environ or "MASTER_ADDR" not in os.environ:
        raise UsageError("WORLD_SIZE is set but RANK or MASTER_ADDR is not; start it by torchrun")
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    with _together():
        distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield Team(distributed.get_rank(), size), device
    finally:
        distributed.destroy_process_group()


@contextmanager
def _together() -> Iterator[None]:
    """Turn what torch raises when another process is gone into one sentence."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        first = str(error).strip().partition("\n")[0]
        raise DeviceError(
            f"another process of this job is gone or unreachable ({first}); what was finished is "
            "in the journal: start all again with --resume"
        ) from error
