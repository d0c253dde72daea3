"""What the layouts that exist for several bits share: their name and spec."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgesparse.packed import SYMMETRIC, TABLE, FormatSpec
from edgesparse.pattern import Pattern


@dataclass(frozen=True)
class Family:
    """One layout for codes of ``bits`` bits; 16 are float16 values."""

    bits: int
    version: int = 1
    prefix: ClassVar[str]

    @property
    def name(self) -> str:
        """Row of the format registry."""
        return f"{self.prefix}{self.bits}"

    def spec(
        self, *, group_size: int, pattern: Pattern, scheme: str = SYMMETRIC, table_rows: int = 0
    ) -> FormatSpec:
        """Return the spec of this format with these parameters."""
        return FormatSpec(
            name=self.name,
            version=self.version,
            bits=self.bits,
            group_size=group_size,
            pattern=pattern,
            scale_dtype="none" if self.bits == 16 or scheme == TABLE else "float16",
            scheme=scheme,
            table_rows=table_rows,
        )
