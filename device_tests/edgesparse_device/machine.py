"""What this machine says about itself: system, processor, vector features."""

from __future__ import annotations

import platform
import sys
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# Of all a processor reports, what vector kernels choose by.
TELLING = frozenset(
    (
        "sse4_1", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_vbmi2", "avx_vnni", "amx_int8",
        "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2",
    )
)  # fmt: skip


@lru_cache(maxsize=1)
def cpu() -> tuple[str, tuple[str, ...]]:
    """Return (model, telling features) of the processor, as far as the system shows them."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine(), ()
    return parse_cpuinfo(text)


def parse_cpuinfo(text: str) -> tuple[str, tuple[str, ...]]:
    """Return (model, telling features) out of Linux's ``/proc/cpuinfo``."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    model = fields.get("model name") or fields.get("Hardware") or fields.get("CPU part", "")
    words = (fields.get("flags") or fields.get("Features") or "").split()
    return model, tuple(word for word in words if word in TELLING)


def operating_system() -> str:
    """Return system and release in a few words."""
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]}"
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        name = platform.system()
    return f"{name}, {platform.system()} {platform.release()}"


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of those of ``packages`` that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
