"""Sparse training for any PyTorch loop: small objects called after ``optimizer.step()``.

::

    hook = GradualMagnitude(weights_of(model), pattern, start=1000, end=9000, every=100)
    for step, batch in enumerate(loader):
        loss(model, batch).backward()
        optimizer.step()
        hook(step)
    masks = hook.keep_masks()

``GradualMagnitude`` follows the cubic schedule of Zhu & Gupta 2017 (arXiv 1710.01878);
``SparseMomentum`` keeps the sparsity and moves weights to where the gradients' momentum is largest
(Dettmers & Zettlemoyer 2019, arXiv 1907.04840); ``L1`` shrinks weights towards zero by a proximal
step. A trained model is compressed with the pruner ``magnitude``, whose mask of the same sparsity
is the trained one: removed weights are zero and so the smallest.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edgesparse.errors import UsageError
from edgesparse.pattern import Pattern
from edgesparse.prune.masks import grown, keep_highest


def weights_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights of all linear layers and convolutions, by name; tied ones once."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    owners = {n: m for n, m in model.named_modules() if isinstance(m, kinds)}
    found = {f"{name}.weight".lstrip("."): owner.weight for name, owner in owners.items()}
    return {name: weight for name, weight in found.items() if isinstance(weight, nn.Parameter)}


def cubic(step: int, start: int, end: int) -> float:
    """Return the fraction of the final sparsity at ``step``: 0 to 1, fast first, then slow."""
    if step >= end:
        return 1.0
    return 0.0 if step < start else 1 - (1 - (step - start) / (end - start)) ** 3


class _Masked:
    """Weights with masks that are applied after every optimizer step."""

    def __init__(self, weights: Mapping[str, nn.Parameter], pattern: Pattern) -> None:
        if not weights:
            raise UsageError("no weights to train sparsely: the model has no linear or conv layer")
        self._weights, self._pattern = dict(weights), pattern
        self._masks = {n: torch.ones_like(w, dtype=torch.bool) for n, w in self._weights.items()}

    def keep_masks(self) -> dict[str, Tensor]:
        """Return a copy of every weight's mask, bool in the weight's shape, True = kept."""
        return {name: mask.clone() for name, mask in self._masks.items()}

    @torch.no_grad()
    def _apply(self) -> None:
        for name, weight in self._weights.items():
            weight.mul_(self._masks[name])


class GradualMagnitude(_Masked):
    """Remove the smallest weights of each layer, more and more of them.

    Args:
        weights: Parameters by name, for example ``weights_of(model)``.
        pattern: The final pattern; an N:M pattern loses one weight of each group after the other.
        start: First step with a mask.
        end: Step from which the mask has its final sparsity and no longer moves.
        every: Steps between two masks.
    """

    def __init__(
        self,
        weights: Mapping[str, nn.Parameter],
        pattern: Pattern,
        *,
        start: int,
        end: int,
        every: int = 100,
    ) -> None:
        super().__init__(weights, pattern)
        if not (0 <= start < end and every > 0):
            raise UsageError(
                f"start {start}, end {end}, every {every}: expected 0 <= start < end and every > 0"
            )
        self._start, self._end, self._every = start, end, every
        self._final = False

    @torch.no_grad()
    def __call__(self, step: int) -> None:
        """Call after every optimizer step; ``step`` counts from 0."""
        due = step >= self._start and (step - self._start) % self._every == 0
        if (due or step >= self._end) and not self._final:
            now = grown(self._pattern, cubic(step, self._start, self._end))
            for name, weight in self._weights.items():
                scores = weight.detach().abs().reshape(len(weight), -1)
                self._masks[name] = keep_highest(scores, now).reshape(weight.shape)
            self._final = step >= self._end
        self._apply()


class SparseMomentum(_Masked):
    """Keep the number of weights, move a share of them to where momentum is largest.

    Args:
        weights: Parameters by name.
        sparsity: Fraction of each layer removed at the start, at random.
        optimizer: Holds the momentum: ``momentum_buffer`` of SGD or ``exp_avg`` of Adam.
        every: Steps between two moves.
        share: Fraction of the kept weights moved at first; falls to zero at ``end``.
        end: Step from which the mask no longer moves.
        seed: Of the first mask.
    """

    def __init__(
        self,
        weights: Mapping[str, nn.Parameter],
        sparsity: float,
        optimizer: torch.optim.Optimizer,
        *,
        end: int,
        every: int = 100,
        share: float = 0.2,
        seed: int = 0,
    ) -> None:
        super().__init__(weights, Pattern(sparsity=sparsity))
        self._optimizer, self._every, self._share, self._end = optimizer, every, share, end
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self._weights.items():
            scores = torch.rand(weight.shape, generator=generator).reshape(len(weight), -1)
            keep = keep_highest(scores, self._pattern).reshape(weight.shape)
            self._masks[name] = keep.to(weight.device)
        self._apply()

    @torch.no_grad()
    def __call__(self, step: int) -> None:
        """Call after every optimizer step; ``step`` counts from 0."""
        if 0 < step < self._end and step % self._every == 0:
            share = self._share * (1 - step / self._end)
            for name, weight in self._weights.items():
                self._move(name, weight, share)
        self._apply()

    def _move(self, name: str, weight: nn.Parameter, share: float) -> None:
        """Remove the smallest kept weights and regrow as many where the momentum is largest."""
        state = self._optimizer.state.get(weight, {})
        momentum = state.get("exp_avg", state.get("momentum_buffer"))
        if momentum is None:
            return
        mask = self._masks[name].flatten().clone()
        count = int(share * int(mask.sum()))
        count = min(count, int((~mask).sum()))
        smallest = weight.detach().abs().flatten().masked_fill(~mask, torch.inf)
        mask[smallest.argsort(stable=True)[:count]] = False
        removed = self._masks[name].flatten()
        largest = momentum.abs().flatten().masked_fill(removed, -torch.inf)
        mask[largest.argsort(descending=True, stable=True)[:count]] = True
        self._masks[name] = mask.reshape(weight.shape)


class L1:
    """Shrink weights towards zero after every step: the proximal step of ``strength · |w|``."""

    def __init__(self, weights: Mapping[str, nn.Parameter], strength: float) -> None:
        if not strength > 0:
            raise UsageError(f"strength is {strength}, expected more than 0")
        self._weights, self._strength = dict(weights), strength

    @torch.no_grad()
    def __call__(self, lr: float) -> None:
        """Call after every optimizer step with its learning rate."""
        for weight in self._weights.values():
            shrunk = (weight.abs() - lr * self._strength).clamp(min=0)
            weight.copy_(weight.sign() * shrunk)
