"""Find the sentence that comes next, with an encoder of a sixth of the bytes.

The encoder was trained by sentences/train.py; what it is judged on is a book it never saw: for each
of 512 sentences, is the one that follows it among the ten most similar of all that follow?
"""

from pathlib import Path

import torch
from sentences.network import make, sentences_of, tokenized

import edgesparse as es
from edgesparse.runtime.modules import build_packed

DATA = Path(__file__).parent / "data"
heard = sentences_of((DATA / "validation.txt").read_text(encoding="utf-8"))[:513]
known = sentences_of((DATA / "calibration.txt").read_text(encoding="utf-8"))[:192]


def found_among_ten(encoder: torch.nn.Module) -> float:
    with torch.inference_mode():
        vectors = torch.cat([encoder(**tokenized(heard[i : i + 64])) for i in range(0, 513, 64)])
    best = (vectors[:-1] @ vectors[1:].T).topk(10).indices
    return float((best == torch.arange(512)[:, None]).any(1).double().mean())


encoder, inputs = make()
model = es.load(encoder, example_inputs=inputs)
plan = es.plan(model, budget=es.Budget(file="1MB"))
texts = tokenized(known)
calibration = [{name: t[i : i + 16] for name, t in texts.items()} for i in range(0, 192, 16)]
small = es.compress(model, plan, calibration=calibration)

dense, packed = found_among_ten(encoder), found_among_ten(build_packed(small))
print(f"float32  {model.nbytes:>9,} bytes: the next sentence is among ten of 512 in {dense:.1%}")
print(f"packed   {small.nbytes:>9,} bytes: {packed:.1%}; by chance it would be 2.0%")
assert dense > 0.06
assert packed > dense - 0.03

for ending in (".pte", ".mlpackage"):
    artifact = es.export(small, path=f"out/sentences{ending}", force=True)
    verdict = es.validate(artifact, small)
    assert verdict.ok, verdict
    print(f"{artifact.path}  {artifact.nbytes:,} bytes, proven")
