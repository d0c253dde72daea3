"""Recovery one block at a time: each learns to give the dense block's output from what reaches it.

For models too large to train whole: on the device are one block, its dense twin, its optimizer and
the hidden tensors of the calibration inputs between blocks. The loss is the relative squared error
of the block's output on the compressed model's hidden tensors against the dense model's own, so
that a block also makes up for the blocks before it.

Every block has an optimizer and an order of the data of its own, so a finished block is all that a
later run needs: with a journal it is durable before the next is begun.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edgesparse.calibrate.hidden import Hidden, first_hidden
from edgesparse.calibrate.inputs import has_inputs
from edgesparse.calibrate.record import Chain, disable_cache, find_chain, record
from edgesparse.calibrate.residence import Residence
from edgesparse.calibrate.windows import Batch, calibration_batches, digest
from edgesparse.errors import CalibrationError
from edgesparse.journal import Journal
from edgesparse.model import CapturedModel, CompressedModel
from edgesparse.packed import PackedTensor
from edgesparse.recovery.job import job
from edgesparse.recovery.latent import LatentWeight
from edgesparse.recovery.room import require_both

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BlockProgress:
    """One block done.

    Attributes:
        block: Its module path.
        done: Blocks done, this one included.
        total: Blocks of the chain.
        before: Relative squared error of its output before training, on all inputs.
        after: And after.
    """

    block: str
    done: int
    total: int
    before: float
    after: float


def recover_blockwise(
    compressed: CompressedModel,
    *,
    data: object,
    steps: int = 200,
    lr: float = 1e-3,
    batch: int = 8,
    windows: int | None = 64,
    window: int = 512,
    device: str = "cpu",
    seed: int = 0,
    journal: Path | None = None,
    progress: Callable[[BlockProgress], None] | None = None,
) -> CompressedModel:
    """Return the model with better values in every block, masks and formats unchanged.

    Args:
        compressed: The model; not changed.
        data: See ``calibrate.calibration_batches``.
        steps: Optimizer steps for each block.
        lr: Highest learning rate; falls linearly to zero.
        batch: Windows or examples in a step.
        windows: Windows of tokens used in all.
        window: Tokens in a window.
        device: ``cpu`` or ``cuda``.
        seed: Which windows, and in which order.
        journal: Directory that keeps finished blocks; those of an interrupted run of the same job
            are gone on with, to the very same bits. The result is read from there, so keep it until
            that is saved.
        progress: Called after every block, finished ones of an earlier run too.

    Raises:
        CalibrationError: The model is no chain of blocks, or the data cannot be used.
        ResumeRefused: The journal is another job's: another model, teacher or data, other options
            or code; the difference is named.
        FormatError: The journal cannot be written.
        UsageError: There is less memory than both models take.
    """
    from edgesparse.runtime.modules import build_decoded

    require_both(compressed)
    captured, target = compressed.captured, torch.device(device)
    batches = calibration_batches(
        captured, data, windows=windows, window=window, seed=seed, batch_size=batch
    )
    finished = None
    if journal is not None:
        options = {"steps": steps, "lr": lr, "seed": seed, "device": target.type}
        work = job(compressed, captured, data=digest(batches), options=options)
        finished = Journal(journal, work)
    how = _Training(captured=captured, steps=steps, lr=lr, seed=seed, journal=finished)
    try:
        dense, model = captured.loader().float().eval(), build_decoded(compressed)
        packed = _train_blocks(model, dense, compressed.packed, batches, target, how, progress)
    finally:
        if finished is not None:
            finished.close()
    metadata = {**compressed.metadata, "recovery": {"steps": steps, "blockwise": True, "lr": lr}}
    return dataclasses.replace(compressed, packed=packed, errors={}, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class _Training:
    """How every block is trained, and where it is kept."""

    captured: CapturedModel
    steps: int
    lr: float
    seed: int
    journal: Journal | None

    def is_finished(self, tensors: Sequence[str]) -> bool:
        """Whether an earlier run trained a block of these tensors."""
        return self.journal is not None and all(t in self.journal.finished for t in tensors)

    def recall(self, tensors: Sequence[str]) -> dict[str, PackedTensor]:
        """Return the tensors of a finished block."""
        assert self.journal is not None
        return {t: self.journal.packed(self.captured.by_name[t]) for t in tensors}

    def keep(self, packed: dict[str, PackedTensor], error: float) -> dict[str, PackedTensor]:
        """Make a block's tensors durable; return them as a later run will find them."""
        if self.journal is None or not packed or self.is_finished(list(packed)):
            return packed
        errors, dropped = dict.fromkeys(packed, error), dict.fromkeys(packed, 0)
        self.journal.commit([self.journal.write_part(packed, errors, dropped)])
        return self.recall(list(packed))


def _train_blocks(
    model: nn.Module,
    dense: nn.Module,
    packed: Mapping[str, PackedTensor],
    batches: Sequence[Batch],
    device: torch.device,
    how: _Training,
    progress: Callable[[BlockProgress], None] | None,
) -> dict[str, PackedTensor]:
    """Train every block of ``model`` in running order; return all packed tensors, theirs new."""
    disable_cache(dense)
    disable_cache(model)
    chain, result = _chain(dense, batches), dict(packed)
    with torch.no_grad():
        hidden = first_hidden(model, batches, chain, device, residence=Residence())
        hidden.dense = first_hidden(dense, batches, chain, device, residence=Residence()).now
    for index, name in enumerate(chain.blocks):
        module, twin = model.get_submodule(name).to(device), dense.get_submodule(name).to(device)
        block = _Block(name, module, result)
        before, after = _train(block, twin, hidden, how)
        result |= how.keep(block.packed, after)
        module.to("cpu")
        twin.to("cpu")
        if progress is not None:
            done, total = index + 1, len(chain.blocks)
            progress(BlockProgress(block=name, done=done, total=total, before=before, after=after))
    return result


class _Block(nn.Module):
    """One block whose packed tensors are latent.

    Attributes:
        packed: Those tensors by name.
    """

    def __init__(self, name: str, block: nn.Module, packed: Mapping[str, PackedTensor]) -> None:
        super().__init__()
        self.name, self._block = name, [block.requires_grad_(False)]
        self.hold({n: p for n, p in packed.items() if n.startswith(f"{name}.")})

    def hold(self, packed: dict[str, PackedTensor]) -> None:
        """Take these tensors in the place of those before."""
        device = next(self._block[0].parameters()).device
        self.packed = packed
        self.latent = nn.ModuleList(LatentWeight(p) for p in packed.values()).to(device)

    def forward(self, hidden: Hidden, batch: int) -> Tensor:
        """Return the hidden output for one batch."""
        args, kwargs = hidden.arguments(self.name, batch, dense=False)
        weights = {
            tensor[len(self.name) + 1 :]: latent()
            for tensor, latent in zip(self.packed, self.latent, strict=True)
        }
        output = torch.func.functional_call(self._block[0], weights, args, kwargs)
        return _hidden(output)

    def pack(self) -> dict[str, PackedTensor]:
        """Return the tensors as they are trained by now."""
        result = {}
        for (tensor, before), latent in zip(self.packed.items(), self.latent, strict=True):
            assert isinstance(latent, LatentWeight)
            result[tensor] = latent.pack(before.spec.pattern)
        return result


def _train(block: _Block, twin: nn.Module, hidden: Hidden, how: _Training) -> tuple[float, float]:
    """Train one block and move the hidden tensors behind it; return its errors."""
    assert hidden.dense is not None
    with torch.no_grad():
        wanted = []
        for i in range(len(hidden)):
            args, kwargs = hidden.arguments(block.name, i, dense=True)
            wanted.append(_hidden(twin(*args, **kwargs)))
        before = _error(block, hidden, wanted)
    if how.is_finished(list(block.packed)):
        block.hold(how.recall(list(block.packed)))
    elif block.packed:
        _optimize(block, hidden, wanted, how)
        # Packed and taken again: what runs from here on is what a later run finds.
        block.hold(block.pack())
    with torch.no_grad():
        after = _error(block, hidden, wanted)
        for i, value in enumerate(wanted):
            hidden.now[i] = block(hidden, i)
            hidden.dense[i] = value
    return before, after


def _optimize(block: _Block, hidden: Hidden, wanted: Sequence[Tensor], how: _Training) -> None:
    """Take the steps of Adam, one batch each, in a seeded order."""
    latents = [latent for latent in block.latent if isinstance(latent, LatentWeight)]
    scales = [latent.log_scales for latent in latents if latent.log_scales.requires_grad]
    values = [latent.values for latent in latents]
    groups = [{"params": values, "lr": how.lr}, {"params": scales, "lr": 10 * how.lr}]
    optimizer = torch.optim.Adam(groups, lr=how.lr, betas=(0.9, 0.95))
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=how.steps)
    order = np.random.default_rng(how.seed)
    for _ in range(how.steps):
        i = int(order.integers(len(hidden)))
        optimizer.zero_grad()
        loss = _relative(block(hidden, i), wanted[i])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        falling.step()


def _error(block: _Block, hidden: Hidden, wanted: Sequence[Tensor]) -> float:
    """Return the mean relative squared error over all batches."""
    errors = [_relative(block(hidden, i), wanted[i]) for i in range(len(hidden))]
    return float(torch.stack(errors).mean())


def _relative(found: Tensor, wanted: Tensor) -> Tensor:
    return (found - wanted).square().mean() / wanted.square().mean().clamp(min=1e-12)


def _hidden(output: object) -> Tensor:
    """Return the hidden tensor of what a block returned."""
    hidden = output[0] if isinstance(output, tuple) else output
    assert isinstance(hidden, Tensor)
    return hidden


def _chain(model: nn.Module, batches: Sequence[Batch]) -> Chain:
    """Return the chain of blocks.

    Raises:
        CalibrationError: There is none.
    """
    modules = [name for name, module in model.named_modules() if has_inputs(module)]
    with torch.no_grad():
        recording = record(model, batches[0], modules, torch.device("cpu"))
    chain = find_chain(model, recording, modules)
    if chain is None:
        raise CalibrationError(
            "this model is no chain of blocks, so it cannot be recovered block by block; use "
            "recover, which trains it whole"
        )
    return chain
