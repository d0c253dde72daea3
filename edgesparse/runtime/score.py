"""Next-token scores as running sums: negative log-likelihood, KL divergence, agreement."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# Rows of logits turned into probabilities at a time: a vocabulary of 128k then costs 130 MB.
_ROWS = 128


class Tally:
    """Sums over predictions, in float64.

    Attributes:
        count: Predictions added.
    """

    def __init__(self) -> None:
        self.count = 0
        self._nll = self._dense_nll = self._kl = 0.0
        self._agree = 0

    def add(self, tokens: Tensor, own: Tensor, dense: Tensor | None) -> None:
        """Add one window.

        Args:
            tokens: int64, shape (T,).
            own: Logits of the model measured, float32, shape (T, V); row t predicts token t + 1.
            dense: Logits of the dense model, or None.
        """
        targets = tokens[1:]
        for start in range(0, len(targets), _ROWS):
            rows = slice(start, min(start + _ROWS, len(targets)))
            target = targets[rows]
            log_q = functional.log_softmax(own[rows], dim=-1)
            self._nll += float(functional.nll_loss(log_q, target, reduction="none").double().sum())
            self.count += len(target)
            if dense is None:
                continue
            log_p = functional.log_softmax(dense[rows], dim=-1)
            self._dense_nll += float(
                functional.nll_loss(log_p, target, reduction="none").double().sum()
            )
            divergence = (log_p.exp() * (log_p - log_q)).sum(dim=-1)
            self._kl += float(divergence.double().sum())
            self._agree += int((log_p.argmax(dim=-1) == log_q.argmax(dim=-1)).sum())

    def means(self, *, compared: bool) -> dict[str, Any]:
        """Return perplexity and, when ``compared``, the dense one, KL and agreement."""
        means = {"perplexity": _exp(self._nll / self.count)}
        if compared:
            means["dense_perplexity"] = _exp(self._dense_nll / self.count)
            # A sum of roundings may fall a hair below the zero that KL of equals is.
            means["kl"] = max(0.0, self._kl / self.count)
            means["top1_agreement"] = self._agree / self.count
        return means


def _exp(mean: float) -> float:
    """Return e**mean, infinite instead of overflowing."""
    return float(torch.tensor(mean, dtype=torch.float64).exp())
