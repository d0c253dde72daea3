"""Which weights may stay: unstructured, N:M, or blocks.

A pattern is written the way the field says it: ``unstructured``, ``2:4`` (2 kept of every 4
neighbouring columns), ``16x1`` (blocks of 16 rows by 1 column, kept or removed whole).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from edgesparse.errors import RecipeError

_N_OF_M = re.compile(r"(\d+):(\d+)")
_BLOCK = re.compile(r"(\d+)x(\d+)")
MAX_OF = 64


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """The shape of a mask and how much of it is removed.

    Either ``keep``/``of`` is set (N:M along the columns, ``block`` 1x1) or ``sparsity`` is.

    Attributes:
        sparsity: Fraction of weights removed, 0 <= sparsity < 1.
        keep: N of N:M, the number of weights kept in every ``of`` neighbouring columns.
        of: M of N:M, at most 64.
        block: Rows and columns that are kept or removed together.
    """

    sparsity: float = 0.0
    keep: int | None = None
    of: int | None = None
    block: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        if (self.keep is None) != (self.of is None):
            raise RecipeError("an N:M pattern needs both keep and of, for example keep=2, of=4")
        if self.keep is not None and self.of is not None:
            if not 1 <= self.keep <= self.of <= MAX_OF:
                raise RecipeError(
                    f"pattern {self.keep}:{self.of}: expected 1 <= keep <= of <= {MAX_OF}"
                )
            if self.block != (1, 1):
                raise RecipeError("a pattern is N:M or a block, not both")
            object.__setattr__(self, "sparsity", 1 - self.keep / self.of)
        if not 0 <= self.sparsity < 1:
            raise RecipeError(f"sparsity is {self.sparsity}, expected 0 <= sparsity < 1")
        if min(self.block) < 1:
            raise RecipeError(f"block {self.block}: rows and columns must be at least 1")

    @classmethod
    def parse(cls, text: str, *, sparsity: float = 0.0) -> Pattern:
        """Read ``unstructured``, ``2:4`` or ``16x1``.

        Args:
            text: The pattern as a user types it.
            sparsity: Fraction removed, for the patterns that do not fix it themselves.

        Raises:
            RecipeError: Not a pattern, or ``sparsity`` contradicts an N:M pattern.
        """
        if match := _N_OF_M.fullmatch(text):
            pattern = cls(keep=int(match[1]), of=int(match[2]))
            if sparsity and abs(sparsity - pattern.sparsity) > 1e-9:
                raise RecipeError(
                    f"pattern {text} fixes the sparsity at {pattern.sparsity:g}, but sparsity "
                    f"{sparsity:g} was asked for; leave one of them out"
                )
            return pattern
        if match := _BLOCK.fullmatch(text):
            return cls(sparsity=sparsity, block=(int(match[1]), int(match[2])))
        if text == "unstructured":
            return cls(sparsity=sparsity)
        raise RecipeError(
            f"pattern {text!r}: expected 'unstructured', N:M such as 2:4, or a block such as 16x1"
        )

    @property
    def is_dense(self) -> bool:
        """Whether nothing is removed."""
        return self.sparsity == 0

    @property
    def n_of_m(self) -> tuple[int, int] | None:
        """``(keep, of)`` of an N:M pattern, else None."""
        return None if self.keep is None or self.of is None else (self.keep, self.of)

    def with_sparsity(self, sparsity: float) -> Pattern:
        """Return the same shape of mask at another sparsity; N:M becomes unstructured."""
        return replace(self, sparsity=sparsity, keep=None, of=None)

    def __str__(self) -> str:
        if self.n_of_m:
            return f"{self.keep}:{self.of}"
        if self.block != (1, 1):
            return f"{self.block[0]}x{self.block[1]}"
        return "unstructured"

    def to_json(self) -> dict[str, object]:
        """Return the JSON form; ``from_json`` reads it back."""
        if self.n_of_m:
            return {"keep": self.keep, "of": self.of}
        return {"sparsity": self.sparsity, "block": list(self.block)}

    @classmethod
    def from_json(cls, data: object) -> Pattern:
        """Read the form ``to_json`` writes.

        Raises:
            RecipeError: Anything else.
        """
        match data:
            case {"keep": int(keep), "of": int(of)}:
                return cls(keep=keep, of=of)
            case {"sparsity": float() | int() as sparsity, "block": [int(rows), int(columns)]}:
                return cls(sparsity=float(sparsity), block=(rows, columns))
        raise RecipeError(f"not a pattern: {data!r}")


DENSE = Pattern()
