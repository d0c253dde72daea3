"""Each fix for coremltools, and whether the installed one still needs it."""

import inspect

import numpy as np
import pytest
from edgesparse_converters.coreml import compat


@pytest.fixture(scope="module", autouse=True)
def _applied():
    compat.apply()


def test_numpy_refuses_what_coremltools_cast_does():
    """No longer needed when coremltools' own _cast takes .item(): then delete compat._cast."""
    from coremltools.converters.mil.frontend.torch import ops

    assert ops._cast is compat._cast
    source = inspect.getsource(inspect.getmodule(ops.__dict__["_get_inputs"]))
    assert "dtype(x.val)" in source
    with pytest.raises(TypeError):
        int(np.array([3]))


def test_alias_is_registered_by_us():
    """No longer needed when coremltools registers alias itself: then delete compat.alias."""
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY

    assert _TORCH_OPS_REGISTRY.get_func("alias") is compat.alias


@pytest.mark.parametrize("name", ["new_ones", "rms_norm"])
def test_translators_that_refuse_what_torch_gives(name):
    """No longer needed when the plain translator takes it: then drop it from the refused ones."""
    import coremltools as ct
    import torch

    class Ones(torch.nn.Module):
        def forward(self, x):
            return x + x.new_ones((3, 4))

    module = Ones() if name == "new_ones" else torch.nn.RMSNorm(4)
    with compat.quiet():
        program = torch.export.export(module.eval(), (torch.zeros(3, 4),)).run_decompositions({})
        names = {str(node.target) for node in program.graph.nodes}
        assert f"aten.{name}.default" in names
        with pytest.raises((ValueError, NotImplementedError, RuntimeError)):
            ct.convert(program, minimum_deployment_target=ct.target.iOS18, skip_model_load=True)
