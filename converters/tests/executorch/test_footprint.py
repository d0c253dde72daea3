"""Memory as the operating system sees it, around what the file itself says."""

from __future__ import annotations

from pathlib import Path

import pytest
from edgesparse_converters.executorch.footprint import measure_peak
from edgesparse_converters.executorch.memory import memory_of
from edgesparse_converters.executorch.program import read_program

from edgesparse.exporting import Artifact

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the system does not say what is resident"
)


def test_what_a_program_takes_is_what_its_file_says(classics_packed: Artifact) -> None:
    found = measure_peak(classics_packed.path)
    predicted = memory_of(read_program(classics_packed.path)).peak
    assert found is not None
    # Of 7 MB, 5 are the runtime's and differ by host: code is read in by larger or smaller pages.
    assert abs(found - predicted) < 2_000_000
