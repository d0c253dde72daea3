"""The plan as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgesparse.budget import Budget, format_duration, format_size
from edgesparse.errors import RecipeError
from edgesparse.model import TensorInfo, TensorKind
from edgesparse.packed import SYMMETRIC, FormatSpec
from edgesparse.pattern import Pattern
from edgesparse.recipe import Recipe, Rule, rule_to_json


@dataclass(frozen=True, kw_only=True)
class TensorPlan:
    """What happens to one tensor.

    Attributes:
        tensor: The tensor.
        rule: What is done, with the planner's changes; None leaves the tensor as it is.
        spec: How it will be stored; None leaves it as it is.
        nbytes: Predicted stored bytes.
        reason: Why this, in a few words.
    """

    tensor: TensorInfo
    rule: Rule | None
    spec: FormatSpec | None
    nbytes: int
    reason: str = ""

    def __post_init__(self) -> None:
        assert (self.rule is None) == (self.spec is None), self.tensor.name

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form; ``from_json`` reads it back."""
        tensor, spec = self.tensor, self.spec
        return {
            "tensor": {
                "name": tensor.name, "kind": tensor.kind.value, "shape": list(tensor.shape),
                "dtype": tensor.dtype, "aliases": list(tensor.aliases),
                "compressible": tensor.compressible, "reason": tensor.reason,
                "patchwise": tensor.patchwise,
            },
            "rule": self.rule and rule_to_json(self.rule),
            "spec": spec and spec.to_json(),
            "nbytes": self.nbytes,
            "reason": self.reason,
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TensorPlan:
        """Read the form ``to_json`` writes.

        Raises:
            RecipeError: Anything else.
        """
        try:
            tensor, spec, rule = dict(data["tensor"]), data["spec"], data["rule"]
            return cls(
                tensor=TensorInfo(
                    **{
                        **tensor,
                        "kind": TensorKind(tensor["kind"]),
                        "shape": tuple(tensor["shape"]),
                        "aliases": tuple(tensor["aliases"]),
                    }
                ),
                rule=None if rule is None else Recipe.from_json([rule]).rules[0],
                spec=None
                if spec is None
                else FormatSpec(**{**spec, "pattern": Pattern.from_json(spec["pattern"])}),
                nbytes=int(data["nbytes"]),
                reason=str(data["reason"]),
            )
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            raise RecipeError(f"not the plan of a tensor: {error!r}") from None


@dataclass(frozen=True, kw_only=True)
class MemoryTerm:
    """One part of a predicted peak memory.

    Attributes:
        name: What it is.
        nbytes: Its bytes.
        basis: How it was found, in a few words.
    """

    name: str
    nbytes: int
    basis: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What happens to every tensor of a model, and what that costs.

    Attributes:
        tensors: One entry per distinct tensor, in state-dict order.
        nbytes: Predicted bytes of ``weights.safetensors``, header included.
        budget: What was asked for.
        target: Exporter the budget is for, or None for the packed model itself.
        artifact_nbytes: Predicted bytes of the target's file; None without a target.
        memory: The parts of the predicted peak memory; empty if not predicted.
        download_nbytes: Predicted bytes of the weights as they are sent, compressed.
        latency_ns: Predicted time of the products of one token; None without a limit on it.
        latency_of: Whose products these are: the target whose runtime was timed here, or
            ``edgesparse`` for the kernels of this package; None without a limit, and in plans
            from before it was said.
        options: What ``export`` to the target is to be given, as far as times depend on it.
        loss: Predicted loss: relative output error, averaged over the weights; 0 when nothing is
            packed.
        notes: What the planner changed or wants said.
        dense_alternative: The plan of the same bytes with fewer bits and no sparsity; None when
            this plan has no sparsity.
    """

    tensors: tuple[TensorPlan, ...]
    nbytes: int
    budget: Budget
    target: str | None = None
    artifact_nbytes: int | None = None
    memory: tuple[MemoryTerm, ...] = ()
    download_nbytes: int | None = None
    latency_ns: int | None = None
    latency_of: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    loss: float = 0.0
    notes: tuple[str, ...] = ()
    dense_alternative: Plan | None = field(default=None, repr=False)

    @property
    def peak_nbytes(self) -> int | None:
        """Predicted peak memory in the target's runtime; None if not predicted."""
        return sum(term.nbytes for term in self.memory) if self.memory else None

    @property
    def file_nbytes(self) -> int:
        """Bytes that count against ``budget.file``."""
        return self.nbytes if self.artifact_nbytes is None else self.artifact_nbytes

    @property
    def latency_name(self) -> str:
        """What ``latency_ns`` is, for people."""
        whose = f" by {whose_words(self.latency_of, self.options)}" if self.latency_of else ""
        return f"products of one token{whose}, here"

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per parameter of the whole model, header not counted."""
        numel = sum(entry.tensor.numel for entry in self.tensors)
        return 8 * sum(entry.nbytes for entry in self.tensors) / numel if numel else 0.0

    @property
    def is_sparse(self) -> bool:
        """Whether any tensor loses weights to a mask."""
        return any(e.rule is not None and not e.rule.pattern.is_dense for e in self.tensors)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form; ``from_json`` reads it back."""
        alternative = self.dense_alternative
        return {
            "tensors": [entry.to_json() for entry in self.tensors],
            "nbytes": self.nbytes,
            "budget": self.budget.to_json(),
            "target": self.target,
            "artifact_nbytes": self.artifact_nbytes,
            "memory": [vars(term) for term in self.memory],
            "peak_nbytes": self.peak_nbytes,
            "download_nbytes": self.download_nbytes,
            "latency_ns": self.latency_ns,
            "latency_of": self.latency_of,
            "options": dict(self.options),
            "loss": self.loss,
            "notes": list(self.notes),
            "dense_alternative": None if alternative is None else alternative.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Read the form ``to_json`` writes.

        Raises:
            RecipeError: Anything else.
        """
        try:
            alternative = data["dense_alternative"]
            return cls(
                tensors=tuple(TensorPlan.from_json(entry) for entry in data["tensors"]),
                nbytes=int(data["nbytes"]),
                budget=Budget(**data["budget"]),
                target=data["target"],
                artifact_nbytes=data["artifact_nbytes"],
                memory=tuple(MemoryTerm(**term) for term in data["memory"]),
                download_nbytes=data.get("download_nbytes"),
                latency_ns=data.get("latency_ns"),
                latency_of=data.get("latency_of"),
                options=dict(data.get("options", {})),
                loss=float(data["loss"]),
                notes=tuple(data["notes"]),
                dense_alternative=None if alternative is None else cls.from_json(alternative),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise RecipeError(f"not a plan: {error!r}") from None

    def __str__(self) -> str:
        """Return a table: per tensor what is done and what it costs, then the totals."""
        rows = [("tensor", "shape", "done", "format", "bytes")]
        rows += [_row(entry) for entry in self.tensors]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row[:4], widths, strict=True))
            + f"  {row[4]:>9}"
            for row in rows
        ]
        return "\n".join([*lines, *self._totals()])

    def _totals(self) -> list[str]:
        lines = [
            f"weights {format_size(self.nbytes)}, {self.bits_per_weight:.2f} bits/weight; "
            f"budget {self.budget}"
        ]
        if self.artifact_nbytes is not None:
            lines.append(f"{self.target} file {format_size(self.artifact_nbytes)}")
        if self.peak_nbytes is not None:
            parts = ", ".join(f"{term.name} {format_size(term.nbytes)}" for term in self.memory)
            lines.append(f"peak memory {format_size(self.peak_nbytes)}: {parts}")
        if self.download_nbytes is not None:
            lines.append(f"download {format_size(self.download_nbytes)}")
        if self.latency_ns is not None:
            lines.append(f"{self.latency_name} {format_duration(self.latency_ns)}")
        if self.dense_alternative is not None:
            other = self.dense_alternative
            lines.append(
                f"equal bytes without sparsity: {format_size(other.nbytes)}, predicted loss "
                f"{other.loss:.3f} (this plan {self.loss:.3f})"
            )
        return [*lines, *(f"note: {note}" for note in self.notes)]


def whose_words(name: str, options: Mapping[str, Any]) -> str:
    """Return whose products are counted, for people: ``executorch with activations=int8``."""
    said = " and ".join(f"{option}={value}" for option, value in options.items())
    return f"{name} with {said}" if said else name


def _row(entry: TensorPlan) -> tuple[str, str, str, str, str]:
    """Return the table cells of one tensor."""
    rule, spec = entry.rule, entry.spec
    done = entry.reason or "as it is"
    if rule is not None:
        kept = "" if rule.pattern.is_dense else f"{100 * rule.pattern.sparsity:.3g} % "
        shape = "" if str(rule.pattern) == "unstructured" else f"{rule.pattern} "
        group = f" g{spec.group_size}" if spec is not None and spec.group_size else ""
        group = " per tensor" if rule.one_scale else group
        scheme = "" if rule.scheme == SYMMETRIC else f" {rule.scheme}"
        done = f"{kept}{shape}{rule.bits}-bit{scheme}{group}"
    size = "×".join(map(str, entry.tensor.shape)) or "1"
    name = spec.name if spec is not None else entry.tensor.dtype
    return entry.tensor.name, size, done, name, format_size(entry.nbytes)
