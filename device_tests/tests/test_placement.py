"""A compute plan as counts; the structures are coremltools' own, the plan over them is made up."""

from types import SimpleNamespace

import edgesparse_converters.coreml.compat as compat

compat.apply()

from coremltools.models.compute_device import (  # noqa: E402
    MLCPUComputeDevice,
    MLNeuralEngineComputeDevice,
)
from coremltools.models.compute_plan import (  # noqa: E402
    MLComputePlanDeviceUsage,
    MLModelStructureProgram,
    MLModelStructureProgramBlock,
    MLModelStructureProgramFunction,
    MLModelStructureProgramOperation,
)
from edgesparse_device.devices.placement import count  # noqa: E402


def operation(name, *blocks):
    return MLModelStructureProgramOperation(
        inputs={}, operator_name=name, outputs=[], blocks=list(blocks), __proxy__=None
    )


def block(*operations):
    return MLModelStructureProgramBlock(inputs=[], operations=list(operations), output_names=[])


class Plan:
    """Prefers the CPU for what is nested or unknown to the Neural Engine."""

    def __init__(self, *functions):
        self.model_structure = SimpleNamespace(
            program=MLModelStructureProgram(
                functions={
                    str(i): MLModelStructureProgramFunction(inputs=[], block=f)
                    for i, f in enumerate(functions)
                }
            )
        )

    def get_compute_device_usage_for_mlprogram_operation(self, found):
        if found.operator_name == "const":
            return None
        kind = MLCPUComputeDevice if found.operator_name == "cond" else MLNeuralEngineComputeDevice
        device = object.__new__(kind)
        return MLComputePlanDeviceUsage(
            preferred_compute_device=device, supported_compute_devices=[device]
        )


def test_operations_are_counted_by_processor_nested_ones_too():
    nested = block(operation("conv"), operation("const"))
    plan = Plan(block(operation("linear"), operation("cond", nested)), block(operation("linear")))
    assert count(plan) == {"Neural Engine": 3, "CPU": 1}
    assert count(Plan(block())) == {}
