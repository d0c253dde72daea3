"""ExecuTorch's own 4-bit product: XNNPACK, int8 activations by token, 4-bit weights in groups."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator

import numpy as np
from contenders import Contender, Floats

GROUP = 128


def xnnpack(
    weights: Floats, x: Floats, copies: Callable[[int], int], threads: int
) -> Iterator[Contender]:
    """Yield the product of a linear layer that XNNPACK took over, where ExecuTorch is installed."""
    try:
        from executorch.extension.pybindings import portable_lib
    except ImportError as missing:
        sys.stderr.write(f"ExecuTorch is not measured: {missing}\n")
        return
    import torch

    logging.getLogger("torchao").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of exporting
        program = _program(weights, torch.from_numpy(x))
    portable_lib._unsafe_reset_threadpool(threads)
    nbytes = weights.size // 2 + 4 * weights.size // GROUP
    row = (torch.from_numpy(x),)
    stack = [portable_lib._load_for_executorch_from_buffer(program) for _ in range(copies(nbytes))]

    def run(i: int, program: bytes = program) -> None:  # modules read from its memory
        stack[i % len(stack)].forward(row)

    exact = x.astype(np.float64) @ weights.T.astype(np.float64)
    error = np.linalg.norm(stack[0].forward(row)[0].numpy() - exact) / np.linalg.norm(exact)
    yield Contender("executorch xnnpack 4-bit g128", run, nbytes, float(error))


def _program(weights: Floats, x):
    """Return a linear layer as an ExecuTorch program of which XNNPACK computes all."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, PerGroup, quantize_

    rows, columns = weights.shape
    layer = torch.nn.Sequential(torch.nn.Linear(columns, rows, bias=False))
    layer[0].weight.data = torch.from_numpy(weights)
    granularity = PerGroup(GROUP)
    quantize_(
        layer,
        Int8DynamicActivationIntxWeightConfig(
            weight_dtype=torch.int4, weight_granularity=granularity
        ),
    )
    exported = torch.export.export(layer, (x,))
    lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    calls = [
        str(node.target)
        for node in lowered.exported_program().graph.nodes
        if node.op == "call_function"
    ]
    if any("executorch_call_delegate" not in call and "getitem" not in call for call in calls):
        raise RuntimeError(f"XNNPACK did not take the whole layer: {calls}")
    return lowered.to_executorch().buffer
