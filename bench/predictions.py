"""Is what a plan predicts what the file and the runtime then take?

    python bench/predictions.py SOURCE… -o OUT.json [--targets executorch coreml]
    python bench/predictions.py --table -o OUT.json

Every source (as for ``edgesparse plan``; ``predictions:encoder`` and ``predictions:network`` are a
BERT encoder and a ResNet of this file) is compressed to 50 % and 4 bits and to dense 4 bits without
calibration, exported, and an ExecuTorch program run. Each prediction and what was found is kept in
OUT.json, of which ``--table`` makes the table of ``docs/planning.md``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import edgesparse as es
from edgesparse.reconcile import reconcile

KINDS = {"50 % + 4-bit": 0.5, "dense 4-bit": 0.0}


def encoder() -> tuple[nn.Module, dict[str, Any]]:
    """Return a BERT encoder of 14 million parameters and a sentence of 64 tokens."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=6, intermediate_size=1536,
        vocab_size=8192, max_position_embeddings=128,
    )  # fmt: skip
    model = BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():  # as in a trained model; of equal constants a file would keep one
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model, {"input_ids": torch.arange(64)[None]}


def network() -> tuple[nn.Module, dict[str, Any]]:
    """Return a ResNet of 11 million parameters and a picture."""
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2],
        layer_type="basic", num_labels=10,
    )  # fmt: skip
    return ResNetForImageClassification(config).eval(), {"pixel_values": torch.zeros(1, 3, 64, 64)}


def rows(source: str, targets: list[str]) -> Iterator[dict[str, Any]]:
    captured = es.load(source)
    for kind, sparsity in KINDS.items():
        rule = es.Rule(
            bits=4, group_size=128, pattern=es.Pattern(sparsity=sparsity), method="magnitude",
            quantizer="rtn",
        )  # fmt: skip
        for target in targets:
            plan = es.plan(captured, es.Recipe((rule,)), target=target)
            compressed = es.compress(captured, plan)
            suffix = {"executorch": ".pte", "coreml": ".mlpackage"}[target]
            with tempfile.TemporaryDirectory() as folder:
                artifact = es.export(compressed, target, Path(folder) / f"model{suffix}")
                for found in reconcile(compressed, artifact, memory=True):
                    yield {
                        "source": Path(source).name, "kind": kind, "target": target,
                        "name": found.name, "predicted": found.predicted, "found": found.found,
                        "ok": found.ok,
                    }  # fmt: skip


def table(found: list[dict[str, Any]]) -> None:
    print("| model | plan | target | | predicted | found | |\n|---|---|---|---|---|---|---|")
    for row in found:
        off = row["found"] / row["predicted"] - 1
        sizes = " | ".join(f"{row[key] / 1e6:.3f} MB" for key in ("predicted", "found"))
        print(
            f"| {row['source']} | {row['kind']} | {row['target']} | {row['name']} | {sizes} "
            f"| {off:+.2%} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", nargs="*")
    parser.add_argument("--targets", nargs="+", default=["executorch", "coreml"])
    parser.add_argument("--table", action="store_true")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    path = options.output
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    sys.path.insert(0, str(Path(__file__).parent))
    for source in options.sources:
        for row in rows(source, options.targets):
            print(json.dumps(row), flush=True)
            key = [row[name] for name in ("source", "kind", "target", "name")]
            known = [
                r for r in known if [r[n] for n in ("source", "kind", "target", "name")] != key
            ]
            known.append(row)
        path.write_text(json.dumps(known, indent=1), encoding="utf-8")
    if options.table:
        table(known)


if __name__ == "__main__":
    main()
