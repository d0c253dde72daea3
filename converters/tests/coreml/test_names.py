from __future__ import annotations

import pytest
from edgesparse_converters.coreml import compat
from edgesparse_converters.coreml.translate import unique_name


@pytest.mark.parametrize(
    ("name", "taken", "expected"),
    [
        ("layers.0.weight", set(), "layers_0_weight"),
        ("layers.0.weight", {"layers_0_weight"}, "layers_0_weight_2"),
        ("layers.0.weight", {"layers_0_weight", "layers_0_weight_2"}, "layers_0_weight_3"),
        ("0.weight", set(), "weight_0_weight"),
        ("_w", set(), "weight__w"),
        ("state", set(), "weight_state"),
    ],
)
def test_a_weight_gets_a_name_that_no_tool_changes(
    name: str, taken: set[str], expected: str
) -> None:
    compat.apply()  # before coremltools, which warns when it is imported
    from coremltools.converters.mil.mil.passes.defs.preprocess import NameSanitizer

    found = unique_name(name, taken)
    assert found == expected
    assert NameSanitizer().sanitize_name(found) == found
