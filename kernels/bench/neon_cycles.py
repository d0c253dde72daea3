"""Estimate how fast the AArch64 kernels run on phones not at hand: llvm-mca on their loops.

    python kernels/bench/neon_cycles.py [--compiler clang++-19] [--mca llvm-mca-19]

The kernels are compiled as for a phone with dot products, the innermost loop with products is taken
from each function, and llvm-mca runs it as if all it reads were in the first-level cache. It has no
models of its own of a Cortex-A715 and X3 but those of the servers' N2 and V2, which are close. A
weight that is not kept is counted where its layout spends no time on it.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

NATIVE = Path(__file__).parents[1] / "native"
PROCESSORS = {
    "A55": "cortex-a55", "A76": "cortex-a76", "A715": "neoverse-n2", "X3": "neoverse-v2",
}  # fmt: skip
PRODUCTS = 16  # of int8 in one dot product instruction, 32 in a matrix multiplication
ITERATIONS = 400
# Name, the function's name demangled, weights for each product, bars on A715 and X3.
LOOPS = (
    ("dense", "four_bit_tile<.*Neon, 1, true>", 1, (16, 32)),
    ("bitmask", "four_bit_tile<.*Neon, 1, false>", 1, (5, 8.8)),
    ("2:4", "nm4_tile<.*Neon, 1>", 2, (11.6, 23)),
    ("n of 64 at 75 %", "n64_tile<.*Neon, 1>", 4, (14, 32)),
    ("16x1 at 50 %", "column16_tile<.*Neon, 1>", 2, None),
    ("16x8 at 50 %", "block16x8_tile<.*Neon, 1>", 2, None),
    ("dense, 16 bits", "four_bit_tile<.*Neon, 2, true>", 0.5, None),
    ("bitmask, 16 bits", "four_bit_tile<.*Neon, 2, false>", 0.5, None),
)  # fmt: skip
DECODED = "decoded_tiles<.*StreamCells"  # one row of a batch with a decoded tile; i8mm takes four


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compiler", default="clang++-19")
    parser.add_argument("--mca", default="llvm-mca-19")
    parser.add_argument("--json", action="store_true", help="for programs")
    arguments = parser.parse_args()
    functions = compiled(arguments.compiler, "dotprod.cpp", "dotprod")
    matrices = compiled(arguments.compiler, "i8mm.cpp", "dotprod+i8mm")
    loops = {name: (loop(functions, of), weights) for name, of, weights, _ in LOOPS}
    loops["decoded tile, a row"] = loop(functions, DECODED), 1
    loops["decoded tile, four rows, i8mm, each"] = loop(matrices, DECODED), 0.25
    found = {
        name: {
            processor: weights * speed(body, arguments.mca, model)
            for processor, model in PROCESSORS.items()
        }
        for name, (body, weights) in loops.items()
    }
    if arguments.json:
        sys.stdout.write(json.dumps(found, indent=1))
        return
    bars = {name: f"{both[0]} / {both[1]}" for name, _, _, both in LOOPS if both}
    sys.stdout.write(f"| weights per cycle | {' | '.join(PROCESSORS)} | bar |\n|{'---|' * 6}\n")
    for name, of in found.items():
        speeds = " | ".join(f"{of[processor]:.1f}" for processor in PROCESSORS)
        sys.stdout.write(f"| {name} | {speeds} | {bars.get(name, '')} |\n")


def compiled(compiler: str, source: str, extension: str) -> dict[str, list[str]]:
    """Return the instructions of each function of a file, by its demangled name."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "kernels.s"
        command = [
            compiler, "--target=aarch64-linux-gnu", f"-march=armv8.2-a+{extension}", "-std=c++17",
            "-O3", "-DNDEBUG", "-fno-exceptions", "-fno-rtti", "-ffp-contract=off", "-fPIC",
            f"-I{NATIVE / 'include'}", "-S", str(NATIVE / "src" / source), "-o", str(output),
        ]  # fmt: skip
        subprocess.run(command, check=True)
        text = subprocess.run(
            ["c++filt"], input=output.read_text(), capture_output=True, text=True, check=True
        ).stdout
    functions: dict[str, list[str]] = {}
    for line in text.splitlines():
        if re.match(r"[^.\s/].*:\s*(//.*)?$", line):
            functions[line] = body = []
        elif functions and (re.match(r"\.L\w+:", line) or re.match(r"\s+[a-z]", line)):
            body.append(line.split("//")[0].strip())
    return functions


def loop(functions: dict[str, list[str]], pattern: str) -> list[str]:
    """Return the innermost loop of a function with the most products.

    Raises:
        SystemExit: There is no such function, or no such loop in it.
    """
    for name, body in functions.items():
        if re.search(pattern, name):
            places = {line[:-1]: i for i, line in enumerate(body) if line.endswith(":")}
            ends = [(places.get(line.split()[-1], len(body)), i) for i, line in enumerate(body)]
            loops = [body[begin : end + 1] for begin, end in ends if begin < end]
            inner = [
                one
                for one in loops
                if not any(other is not one and _within(other, one) for other in loops)
            ]
            best = max(inner, key=_products, default=[])
            if _products(best):
                return best
    raise SystemExit(f"error: no loop of products in {pattern}; the kernels were renamed?")


def _within(part: list[str], whole: list[str]) -> bool:
    """Whether a loop with products lies inside another."""
    return bool(_products(part)) and part[0] in whole[1:]


def _products(lines: list[str]) -> int:
    return sum(1 if line.startswith("sdot") else 2 * line.startswith("smmla") for line in lines)


def speed(body: list[str], mca: str, processor: str) -> float:
    """Return the products a cycle of a loop."""
    lines = [line for line in body if not line.startswith(".")]
    command = [
        mca, "-mtriple=aarch64-linux-gnu", f"-mcpu={processor}", f"-iterations={ITERATIONS}",
        "-mattr=+dotprod,+i8mm",
    ]  # fmt: skip
    report = subprocess.run(
        command, input="\n".join(lines), capture_output=True, text=True, check=True
    ).stdout
    cycles = re.search(r"Total Cycles:\s+(\d+)", report)
    assert cycles is not None
    return PRODUCTS * _products(lines) * ITERATIONS / int(cycles[1])


if __name__ == "__main__":
    main()
