"""How much memory it takes to write a ``.pte`` of a large model.

    python converters/bench/executorch_scale.py [--layers 16] [--hidden 1536] [--vocabulary 32000]

The model and what is printed are those of ``coreml_scale.py``: a Llama with random codes, half of
them kept, 4 bits in groups of 128, which never had float weights. Linux only.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from coreml_scale import PEAK_RESET, random_model, resident

import edgesparse as es


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("layers", 16), ("hidden", 1536), ("vocabulary", 32_000)):
        parser.add_argument(f"--{name}", type=int, default=value)
    small = random_model(**vars(parser.parse_args()))
    parameters, packed = small.captured.num_parameters, small.nbytes
    before = resident("VmRSS")
    PEAK_RESET.write_text("5")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        artifact = es.export(small, path=Path(folder) / "large.pte")
        seconds = time.monotonic() - started
    peak = resident("VmHWM")
    print(
        json.dumps(
            {
                "parameters": parameters,
                "packed_nbytes": packed,
                "file_nbytes": artifact.nbytes,
                "seconds": round(seconds, 1),
                "before_nbytes": before,
                "peak_nbytes": peak,
                "bytes_per_parameter_above_before": round((peak - before) / parameters, 3),
                "bytes_per_parameter_above_packed": round((peak - packed) / parameters, 3),
            },
            indent=2,
        )
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
