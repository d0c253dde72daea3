"""Train the sentence encoder on books: a sentence should point to where the next one points.

    python examples/sentences/train.py training.txt

Each batch holds pairs of neighbours from all over the text; an encoder that knows which of the
second halves belongs to a first one is right (InfoNCE, van den Oord et al. 2018, arXiv
1807.03748).
Writes ../models/sentences/model.safetensors.
"""

import sys
import time
from pathlib import Path

import torch
from network import TOKENS, WEIGHTS, SentenceEncoder, sentences_of, tokenized
from safetensors.torch import save_file
from torch import Tensor, nn

BATCH, TEMPERATURE, RATE, WARM_UP = 128, 0.07, 1e-3, 50


def train(ids: Tensor, mask: Tensor, *, minutes: float, steps: int) -> SentenceEncoder:
    torch.manual_seed(0)
    encoder = SentenceEncoder()
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=RATE, weight_decay=0.01)
    end = time.monotonic() + 60 * minutes
    for step in range(steps):
        # The schedule follows whichever ends first, the steps or the time.
        left = min(1 - step / steps, (end - time.monotonic()) / (60 * minutes))
        if left <= 0:
            break
        optimizer.param_groups[0]["lr"] = RATE * min(left, (step + 1) / WARM_UP)
        first = torch.randint(len(ids) - 1, (BATCH,))
        both = torch.cat([first, first + 1])
        vectors = encoder(ids[both], mask[both])
        similar = vectors[:BATCH] @ vectors[BATCH:].T / TEMPERATURE
        truth = torch.arange(BATCH)
        loss = nn.functional.cross_entropy(similar, truth) + nn.functional.cross_entropy(
            similar.T, truth
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step} of {steps}, loss {loss.item() / 2:.3f}", flush=True)
    return encoder.eval()


def main(path: str, minutes: float = 9.0, steps: int = 1500) -> None:
    sentences = sentences_of(Path(path).read_text(encoding="utf-8"))
    inputs = tokenized(sentences)
    print(f"{len(sentences):,} sentences of up to {TOKENS} tokens")
    encoder = train(inputs["input_ids"], inputs["attention_mask"], minutes=minutes, steps=steps)
    WEIGHTS.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: p.detach().half() for name, p in encoder.named_parameters()}, WEIGHTS)


if __name__ == "__main__":
    main(sys.argv[1])
