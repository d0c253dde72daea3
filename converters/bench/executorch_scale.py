"""How much memory it takes to write a ``.pte`` of a large model.

    python converters/bench/executorch_scale.py [--layers 16] [--hidden 1536] [--vocabulary 32000]

The model and what is printed are those of ``coreml_scale.py``: a Llama with random codes, half of
them kept, 4 bits in groups of 128, which never had float weights. Linux only.
"""

from __future__ import annotations

import json

from coreml_scale import measure, random_model, sizes


def main() -> int:
    small = random_model(**vars(sizes().parse_args()))
    print(json.dumps(measure(small, "large.pte"), indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
