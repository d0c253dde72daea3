"""Hear ten words with under 30 kB: real recordings, two files, run on this host and on ARM.

The network was trained by keywords/train.py; the recordings are of a speaker it never heard, and a
hundred of others to calibrate with (Free Spoken Digit Dataset, see data/README.md).
"""

from pathlib import Path

import numpy as np
import torch
from edgesparse_device.device import device_named
from edgesparse_device.making import make_bundle
from edgesparse_device.running import Run, run_bundle
from edgesparse_device.tables import record_title
from keywords.network import log_mel, make

import edgesparse as es
from edgesparse.errors import DeviceError
from edgesparse.runtime.modules import build_packed

data = np.load(Path(__file__).parent / "data/spoken_digits.npz", allow_pickle=False)
waves = np.split(data["samples"], data["offsets"][1:-1])
features = torch.from_numpy(np.stack([log_mel(wave) for wave in waves]))
heard = torch.from_numpy(data["held_out"])
digits = torch.from_numpy(data["label"])[heard]


def accuracy(network: torch.nn.Module) -> float:
    with torch.inference_mode():
        return float((network(features=features[heard]).argmax(1) == digits).double().mean())


network, inputs = make()
model = es.load(network, example_inputs=inputs)
rules = (
    es.Rule(name="head.*", bits=8, group_size=96),
    es.Rule(kind="linear", pattern=es.Pattern(sparsity=0.5), method="admm", bits=4, group_size=32),
)  # fmt: skip
plan = es.plan(model, es.Recipe(rules))
small = es.compress(model, plan, calibration=[{"features": f[None]} for f in features[~heard]])
packed = accuracy(build_packed(small))
print(f"{model.nbytes:,} bytes hear {accuracy(network):.1%}, {small.nbytes:,} hear {packed:.1%}")
assert small.nbytes < 30_000
assert packed >= accuracy(network) - 0.01

recordings = {f"digit-{digits[i]}": {"features": features[heard][i : i + 1].numpy()}
              for i in range(0, 500, 50)}  # fmt: skip
for ending, devices in ((".pte", ("host", "qemu-arm64")), (".mlpackage", ("host",))):
    artifact = es.export(small, path=f"out/keywords{ending}", force=True)
    bundle = make_bundle(
        Path(f"out/keywords{ending}.bundle"), artifact.path, small, inputs=recordings, force=True
    )
    for name in devices:
        try:
            device_named(name).describe()
        except DeviceError as error:
            print(f"{name}: {error}")
            continue
        (record,) = run_bundle(bundle, [device_named(name)], Run())
        print(f"{record_title(record)}: {record.verdict}")
        assert record.ok
