"""The cases of the accuracy table: what is compressed how, and what has to come out.

A case is named alike whoever computes it, so that tools stand beside each other: ``50 %``,
``2:4 + 4-bit g128``, ``3-bit g128``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import edgesparse as es
from edgesparse.model import CapturedModel, TensorKind

STEPS, BATCH = 1200, 32
"""Of every recovery: 1200 steps of 32 windows of 512 tokens."""


@dataclass(frozen=True)
class Recovery:
    """Options of ``recover`` that were chosen on held-out novels; ``bar`` as in ``Row``."""

    bar: float
    lr: float = 8e-4
    gradual: float = 0.0
    noise: float = 0.1


@dataclass(frozen=True)
class Row:
    """One way to one case; ``bar`` is the highest acceptable ratio to the dense perplexity.

    ``group`` 0 is one scale for the tensor, or with scheme ``table`` one table.
    """

    pattern: str
    sparsity: float
    method: str
    bits: int = 16
    group: int = 128
    bar: float | None = None
    recovery: Recovery | None = None
    scheme: str = "symmetric"
    quantizer: str = "gptq"

    @property
    def case(self) -> str:
        """Return the name of the case."""
        if self.scheme == "table":
            return f"{self.bits}-bit table"
        return case_name(self.pattern, self.sparsity, self.bits, self.group)

    @property
    def how(self) -> str:
        """Return the method's name."""
        parts = [self.method] if self.sparsity else []
        return " + ".join([*parts, *([self.quantizer] if self.bits < 16 else [])])

    def plan(self, captured: CapturedModel) -> es.Plan:
        """Return the plan that does the same to every linear layer."""
        rule = es.Rule(
            kind=TensorKind.LINEAR,
            pattern=es.Pattern.parse(self.pattern, sparsity=self.sparsity),
            method=self.method or "magnitude",
            bits=self.bits,
            group_size=self.group,
            one_scale=self.group == 0 and self.scheme != "table",
            scheme=self.scheme,
            quantizer=self.quantizer,
        )
        return es.plan(captured, es.Recipe((rule,)))


def case_name(pattern: str, sparsity: float, bits: int, group: int) -> str:
    """Return the name of a case, the same for every tool."""
    kept = f"{sparsity:.0%}".replace("%", " %") if pattern == "unstructured" else pattern
    kept += f" {sparsity:.0%}".replace("%", " %") if "x" in pattern else ""
    stored = "" if bits == 16 else f"{bits}-bit {f'g{group}' if group else 'one scale'}"
    return " + ".join(part for part in (kept if sparsity else "", stored) if part)


def peer_case(case: str) -> tuple[str, str]:
    """Return (case, how) of a peer's ``sparsegpt:2:4+rtn:4:128``."""
    if case.startswith("table:"):
        return f"{case.removeprefix('table:')}-bit table", "k-means"
    pattern, sparsity, bits, group, how = "unstructured", 0.0, 16, 128, []
    for step in case.split("+"):
        method, _, options = step.partition(":")
        how.append(method)
        if method in ("gptq", "rtn"):
            bits, group = map(int, options.split(":"))
        elif re.fullmatch(r"\d+:\d+", options):
            keep, of = map(int, options.split(":"))
            pattern, sparsity = options, 1 - keep / of
        else:
            sparsity = float(options)
    return case_name(pattern, sparsity, bits, group), " + ".join(how)


_ANY = "unstructured"
ROWS = [
    Row(_ANY, 0.5, "magnitude"),
    Row(_ANY, 0.5, "wanda"),
    Row(_ANY, 0.5, "sparsegpt-fast"),
    Row(_ANY, 0.5, "sparsegpt"),
    Row(_ANY, 0.5, "admm", bar=1.13),
    Row(_ANY, 0.6, "wanda"),
    Row(_ANY, 0.6, "sparsegpt"),
    Row(_ANY, 0.6, "admm", bar=1.38),
    Row(_ANY, 0.7, "sparsegpt"),
    Row(_ANY, 0.7, "admm", bar=2.3),
    Row("2:4", 0.5, "wanda"),
    Row("2:4", 0.5, "sparsegpt"),
    Row("2:4", 0.5, "admm", bar=1.40),
    Row(_ANY, 0.0, "", 4, 32, bar=1.012),
    Row(_ANY, 0.0, "", 4, 128),
    Row(_ANY, 0.0, "", 3, 128, bar=1.065),
    Row(_ANY, 0.0, "", 4, 0),
    Row(_ANY, 0.0, "", 4, 0, scheme="table", quantizer="rtn"),
    Row(_ANY, 0.0, "", 4, 0, scheme="table"),
    Row(_ANY, 0.5, "sparsegpt", 4, 128),
    Row(_ANY, 0.5, "admm", 4, 128, bar=1.155, recovery=Recovery(0.99)),
    Row(_ANY, 0.7, "admm", 4, 128, recovery=Recovery(1.03, lr=2e-3)),
    Row("2:4", 0.5, "admm", 4, 128, recovery=Recovery(1.00)),
    Row("16x1", 0.5, "admm", 4, 128, recovery=Recovery(1.05, lr=2e-3, gradual=0.5)),
    Row("16:64", 0.75, "admm", 4, 128, recovery=Recovery(1.06, lr=2e-3)),
]
