"""Rules by layer: 02_recipe.toml read, its plan printed, nothing compressed."""

from pathlib import Path

import edgesparse as es

EXAMPLES = Path(__file__).parent

model = es.load(EXAMPLES / "models/classics-4m")
plan = es.plan(model, es.Recipe.from_toml(EXAMPLES / "02_recipe.toml"))
for entry in plan.tensors:
    if entry.spec is not None:
        print(f"{entry.tensor.name:44} {entry.spec.name:10} {entry.nbytes:>8,} bytes")
print(f"{plan.nbytes:,} bytes in all, predicted from shapes alone")
