"""The whole job in Python: a language model to a budget, to a file, to a proof."""

from pathlib import Path

import edgesparse as es

EXAMPLES = Path(__file__).parent

model = es.load(EXAMPLES / "models/classics-4m")
plan = es.plan(model, budget=es.Budget(file="1.9MB"))
small = es.compress(model, plan, calibration=EXAMPLES / "data/calibration.txt", windows=32)
small.save("out/quickstart", force=True)

artifact = es.export(small, path="out/quickstart.pte", force=True)
verdict = es.validate(artifact, small)
assert verdict.ok, verdict
print(verdict)

found = es.evaluate(small, text=EXAMPLES / "data/validation.txt", max_windows=16)
print(
    f"perplexity {found.perplexity:.1f}, dense {found.dense_perplexity:.1f}, {found.nbytes} bytes"
)
print(es.generate(small, "It was a dark evening when", tokens=60, seed=0))
