"""The process that holds Core AI's runtime, which ends its process on some damaged assets.

``describe PATH FOLDER``      description.json: functions, operators, constants, metadata
``constants PATH FOLDER``     the same, and constants.npz: the stored bytes of every constant
``run PATH FOLDER CALLS``     in{i}.npz -> out{i}.npz, by name
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONSTANT = re.compile(r"(%\w+) = coreai\.constant dense_resource<([^>]+)> : tensor<([^>]*)>")
RESOURCE = re.compile(r'^\s*"?([^\s":]+)"?: "0x([0-9A-Fa-f]*)"', re.MULTILINE)
OPERATION = re.compile(r"^\s+(?:(%\w+) = )?(coreai\.[\w.]+)([^:\n]*)", re.MULTILINE)
PARTS = {
    "coreai.blockwise_shift_scale": ("", "scales", "zeros"),
    "coreai.sparse_with_bitmask_to_dense": ("",),
    "coreai.build_sparse_with_bitmask": ("", "mask"),
    "coreai.lut_to_dense": ("indices", "table"),
    "coreai.cast": ("",),
}
"""What the operands of the operations that rebuild weights are; "" is what is rebuilt so far."""
GRAPH = re.compile(r"coreai\.graph (?:\w+ )*@([\w.]+)\((.*)\) -> \((.*)\)")
NAMED = re.compile(r'tensor<([^>]*)> \{coreai\.name = "([^"]*)"')
ALIGNMENT_DIGITS = 8
"""A resource begins with its alignment, four bytes; then come its numbers."""


def describe(path: str, folder: str) -> str:
    """Write what is in the asset; return its text form."""
    from coreai.authoring import AIModelAsset

    asset = AIModelAsset.load(Path(path))
    text: str = asset.program._module._mlir_module.operation.get_asm()
    head = text.partition("{-#")[0]
    found = {
        "functions": {
            name: {"inputs": _named(inputs), "outputs": _named(outputs)}
            for name, inputs, outputs in GRAPH.findall(head)
        },
        "operators": dict(sorted(Counter(m[1] for m in OPERATION.findall(head)).items())),
        "constants": {v: {"name": n, "type": kind} for v, n, kind in CONSTANT.findall(head)},
        "weights": _weights(head),
        "metadata": json.loads((Path(path) / "metadata.json").read_text(encoding="utf-8")).get(
            "creatorDefinedMetadata", {}
        ),
    }
    (Path(folder) / "description.json").write_text(json.dumps(found), encoding="utf-8")
    return text


def constants(path: str, folder: str) -> None:
    """Write what is in the asset and the bytes of its constants."""
    text = describe(path, folder)
    resources: dict[str, NDArray[Any]] = {
        name: np.frombuffer(bytes.fromhex(digits[ALIGNMENT_DIGITS:]), np.uint8)
        for name, digits in RESOURCE.findall(text, text.find("{-#"))
    }
    np.savez(Path(folder) / "constants.npz", **resources)  # type: ignore[arg-type]  # flags of savez


def run(path: str, folder: str, calls: str) -> None:
    """Run the asset's first function once per input file."""
    asyncio.run(_run(Path(path), Path(folder), int(calls)))


async def _run(path: Path, folder: Path, calls: int) -> None:
    from coreai.authoring import AIModelAsset
    from coreai.runtime import NDArray

    async with AIModelAsset.load(path).executable() as model:
        function = model.load_function(model.function_names[0])
        for call in range(calls):
            with np.load(folder / f"in{call}.npz", allow_pickle=False) as stored:
                inputs = {name: NDArray(stored[name]) for name in stored.files}
            outputs = await function(inputs)
            np.savez(folder / f"out{call}.npz", **{k: v.numpy() for k, v in outputs.items()})


def _weights(text: str) -> list[dict[str, str]]:
    """Return, for each weight, the constants it is rebuilt from, by what they are."""
    stored = {value for value, _, _ in CONSTANT.findall(text)}
    found: dict[str, dict[str, str]] = {}
    for result, kind, words in OPERATION.findall(text):
        operands = re.findall(r"%\w+", words)
        if kind not in PARTS or operands[0] not in {*stored, *found}:
            continue
        parts = found.pop(operands[0], {})
        for part, operand in zip(PARTS[kind], operands, strict=False):
            if operand in stored:
                parts[part or "numbers"] = operand
        found[result] = parts
    return list(found.values())


def _named(text: str) -> list[dict[str, str]]:
    return [{"name": name, "type": kind} for kind, name in NAMED.findall(text)]


VERBS: dict[str, Callable[..., object]] = {
    "describe": describe, "constants": constants, "run": run,
}  # fmt: skip

if __name__ == "__main__":
    VERBS[sys.argv[1]](*sys.argv[2:])
