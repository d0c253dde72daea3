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


def test_a_program_takes_its_own_memory_and_the_runtimes(classics_packed: Artifact) -> None:
    found = measure_peak(classics_packed.path)
    own = memory_of(read_program(classics_packed.path)).peak
    assert found is not None
    # Code that is touched and threads take 5.4 to 6.6 MB around programs measured on one host.
    assert own < found < own + 20_000_000
