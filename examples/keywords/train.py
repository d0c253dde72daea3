"""Train the network and cut the bundled recordings out of the whole data set.

    python examples/keywords/train.py spoken_digits.npz

One speaker is never trained on. Writes ../models/keywords/model.safetensors and
../data/spoken_digits.npz: all 500 recordings of that speaker, and 100 of the others to calibrate.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from network import WEIGHTS, Keywords, log_mel
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

HELD_OUT = "yweweler"
COPIES, EPOCHS, BATCH = 4, 14, 128


def augmented(samples: NDArray[np.int16], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the features of a recording said faster or slower, later, louder, in noise."""
    length = int(len(samples) / rng.uniform(0.8, 1.25))
    wave = np.interp(np.linspace(0, len(samples) - 1, length), np.arange(len(samples)), samples)
    wave = np.concatenate([np.zeros(rng.integers(0, 1200)), wave]) * rng.uniform(0.4, 1.6)
    wave += rng.normal(0, rng.uniform(1, 60), len(wave))
    features = log_mel(wave.astype(np.float32))
    first = rng.integers(0, features.shape[1] - 6)
    features[:, first : first + rng.integers(0, 6)] = 0
    return features


def train(features: Tensor, labels: Tensor) -> Keywords:
    torch.manual_seed(0)
    network = Keywords(norm=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3, weight_decay=0.02)
    steps = EPOCHS * (len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for epoch in range(EPOCHS):
        order = torch.randperm(len(labels))[: len(labels) // BATCH * BATCH]
        for batch in order.reshape(-1, BATCH):
            loss = nn.functional.cross_entropy(
                network(features[batch]), labels[batch], label_smoothing=0.1
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {EPOCHS}, loss {loss.item():.3f}", flush=True)
    return network.eval()


def folded(trained: Keywords) -> Keywords:
    """Return the network with its normalisations multiplied into the mixing layers."""
    network = Keywords()
    network.load_state_dict(trained.state_dict(), strict=False)
    for block, source in zip(network.blocks, trained.blocks, strict=True):
        factor = source.norm.weight / torch.sqrt(source.norm.running_var + source.norm.eps)
        block.mix.weight.data = source.mix.weight * factor[:, None]
        block.mix.bias.data = (source.mix.bias - source.norm.running_mean) * factor
        block.mix.bias.data += source.norm.bias
    return network.eval().requires_grad_(False)


def main(path: str) -> None:
    data = np.load(path, allow_pickle=False)
    waves = np.split(data["samples"], data["offsets"][1:-1])
    labels, held_out = data["label"], data["speaker"] == HELD_OUT
    rng = np.random.default_rng(0)
    chosen = np.repeat(np.flatnonzero(~held_out), COPIES)
    features = torch.from_numpy(np.stack([augmented(waves[i], rng) for i in chosen]))
    network = folded(train(features, torch.from_numpy(labels[chosen].astype(np.int64))))

    heard = torch.from_numpy(np.stack([log_mel(waves[i]) for i in np.flatnonzero(held_out)]))
    found = network(heard).argmax(1).numpy()
    print(f"accuracy on the speaker never heard: {(found == labels[held_out]).mean():.1%}")
    WEIGHTS.parent.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), WEIGHTS)

    kept = np.flatnonzero(held_out | (data["take"] < 2))
    np.savez_compressed(
        Path(__file__).parents[1] / "data/spoken_digits.npz",
        samples=np.concatenate([waves[i] for i in kept]),
        offsets=np.cumsum([0, *(len(waves[i]) for i in kept)]),
        label=labels[kept],
        held_out=held_out[kept],
    )


if __name__ == "__main__":
    main(sys.argv[1])
