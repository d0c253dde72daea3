"""The public API: complete, lazy, and free of clashes."""

import subprocess
import sys

import pytest

import edgesparse

HEAVY = ("torch", "numba", "transformers", "coremltools", "executorch", "safetensors", "click")


def modules_after(code):
    script = f"{code}\nimport sys\nprint(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


def test_importing_the_package_loads_nothing_heavy():
    loaded = modules_after("import edgesparse")
    assert loaded.isdisjoint(HEAVY)


@pytest.mark.parametrize(
    "module", ["budget", "errors", "model", "packed", "pattern", "recipe", "registry"]
)
def test_the_values_need_no_torch(module):
    loaded = modules_after(f"import edgesparse.{module}")
    assert loaded.isdisjoint({"torch", "numba", "transformers", "coremltools", "executorch"})


def test_a_budget_and_a_recipe_can_be_made_without_torch():
    code = "import edgesparse as es; es.Recipe((es.Rule(bits=4),)); es.Budget(file='2MB')"
    assert "torch" not in modules_after(code)


def test_every_name_is_there():
    for name in edgesparse.__all__:
        assert getattr(edgesparse, name).__doc__, name
    assert dir(edgesparse) == edgesparse.__all__


def test_no_submodule_hides_a_public_name():
    code = (
        "import edgesparse.planner, edgesparse.compression, edgesparse.exporting, "
        "edgesparse.runtime, edgesparse\n"
        "assert all(callable(getattr(edgesparse, n)) for n in edgesparse.__all__)"
    )
    assert modules_after(code)


def test_an_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'sqeeze'"):
        edgesparse.sqeeze  # noqa: B018
