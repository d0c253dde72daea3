"""EdgeSparse: a PyTorch model and a memory budget in, a proven on-device model out.

The public API, loaded on first use so that ``import edgesparse`` stays instant:

    load → plan → compress → (recover) → export → validate, with evaluate and generate beside.

No submodule has the name of a public function (planner, compression, exporting): importing a
submodule sets it as an attribute here and would hide the function.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgesparse.budget import Budget
    from edgesparse.capture import load
    from edgesparse.compression import compress
    from edgesparse.exporting import Artifact, Verdict, export, validate
    from edgesparse.model import CapturedModel, CompressedModel
    from edgesparse.packed import Codes, FormatSpec, PackedTensor
    from edgesparse.pattern import Pattern
    from edgesparse.planner import Plan, plan
    from edgesparse.recipe import Recipe, Rule
    from edgesparse.recovery import recover
    from edgesparse.runtime.evaluate import evaluate
    from edgesparse.runtime.generate import generate

__version__ = "0.1.0"

_HOMES = {
    "Artifact": "exporting",
    "Budget": "budget",
    "CapturedModel": "model",
    "Codes": "packed",
    "CompressedModel": "model",
    "FormatSpec": "packed",
    "PackedTensor": "packed",
    "Pattern": "pattern",
    "Plan": "planner",
    "Recipe": "recipe",
    "Rule": "recipe",
    "Verdict": "exporting",
    "compress": "compression",
    "evaluate": "runtime",
    "export": "exporting",
    "generate": "runtime",
    "load": "capture",
    "plan": "planner",
    "recover": "recovery",
    "validate": "exporting",
}

__all__ = [
    "Artifact",
    "Budget",
    "CapturedModel",
    "Codes",
    "CompressedModel",
    "FormatSpec",
    "PackedTensor",
    "Pattern",
    "Plan",
    "Recipe",
    "Rule",
    "Verdict",
    "compress",
    "evaluate",
    "export",
    "generate",
    "load",
    "plan",
    "recover",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'edgesparse' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"edgesparse.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
