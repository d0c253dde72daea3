"""``edgesparse doctor``: what is installed, what this machine can do, which targets work here."""

from __future__ import annotations

import importlib.util
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

from edgesparse.cli._console import show, show_json
from edgesparse.cli._options import common

PACKAGES = (
    "edgesparse", "torch", "numpy", "numba", "safetensors", "transformers", "tokenizers",
    "coremltools", "executorch", "torchao", "jinja2",
)  # fmt: skip
# What the kernels look for, of the hundred names a processor goes by.
FEATURES = (
    "avx2",
    "f16c",
    "fma",
    "avx512f",
    "avx512vbmi2",
    "avx512vnni",
    "amx-int8",
    "neon",
    "dotprod",
    "i8mm",
)


@click.command(short_help="What works on this machine, and why not.")
@common
def doctor(as_json: bool) -> None:
    """Show versions, processor, and which targets work here. Devices: edgesparse device list."""
    findings = examine()
    if as_json:
        show_json(findings)
        return
    from edgesparse.report.tables import columns

    machine = findings["machine"]
    show(f"{machine['system']}, Python {machine['python']}, {machine['cores']} cores")
    features = ", ".join(machine["features"]) or "none of those the kernels look for"
    show(f"processor    {machine['processor']}: {features}", "")
    packages = columns("package", "version", left=2)
    for name, found in findings["packages"].items():
        packages.add_row(name, found or "not installed")
    targets = columns("target", "file", "", left=3)
    for name, target in findings["targets"].items():
        targets.add_row(name, target["suffix"], target["state"])
    show(packages, "", targets)


def examine() -> dict[str, Any]:
    """Return the findings as JSON values; nothing heavy is imported but llvmlite."""
    return {
        "machine": {
            "system": platform.platform(terse=True),
            "processor": platform.machine(),
            "features": _features(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        },
        "packages": {name: _version(name) for name in PACKAGES},
        "targets": _targets(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _features() -> list[str]:
    from llvmlite.binding import get_host_cpu_features

    found = get_host_cpu_features()
    return [name for name in FEATURES if found.get(name)]


def _targets() -> dict[str, dict[str, str]]:
    from edgesparse.exporters import EXPORTERS, suffixes

    targets = {}
    for suffix, name in sorted(suffixes().items()):
        exporter = EXPORTERS.get(name)
        missing = [
            p for p in getattr(exporter, "packages", ()) if importlib.util.find_spec(p) is None
        ]
        state = (
            f"needs {', '.join(missing)}: pip install 'edgesparse[{exporter.extra}]'"
            if missing
            else "ready"
        )
        targets[name] = {"suffix": suffix, "state": state}
    return targets
