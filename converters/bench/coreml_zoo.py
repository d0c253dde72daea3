"""Fifteen architectures, half pruned and in 4 bits, written as packages and executed on this host.

    python converters/bench/coreml_zoo.py [name ...] [--table docs/coreml.md]
        [--real TEXT SOUNDS PICTURE]

Every model is small and randomly initialised from its library's configuration. Printed for each:
whether all weights are read back bit for bit, the largest error relative to the largest output when
the package runs in float32, and the cosine of the outputs when it runs in float16, both against the
packed model in torch, on two random inputs and, with ``--real``, on one that is text, speech or a
photograph. ``--table`` puts the rows between the markers of a Markdown file.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers as tf
from edgesparse_converters.coreml.execute import Executor
from edgesparse_converters.coreml.package import Package
from edgesparse_converters.coreml.validation import check_layers, draw_inputs, reference_outputs
from real_inputs import Sources, real_inputs

import edgesparse as es
from edgesparse.pattern import Pattern

START, END = "<!-- zoo -->", "<!-- /zoo -->"
RECIPE = es.Recipe(
    (
        es.Rule(pattern=Pattern(sparsity=0.5), method="magnitude", bits=4, group_size=32,
                quantizer="rtn"),
    )
)  # fmt: skip

# Weights of 1 / sqrt(hidden_size) keep activations near 1, as in a trained network.
_TEXT = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "initializer_range": 0.125,
}  # fmt: skip
_DECODER = _TEXT | {"num_key_value_heads": 2, "max_position_embeddings": 64}
_VISION = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 64, "patch_size": 16,
}  # fmt: skip
_STAGES = {"hidden_sizes": [16, 32, 64, 64], "depths": [1, 1, 1, 1]}


def _whisper() -> torch.nn.Module:
    config = tf.WhisperConfig(
        d_model=64, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=128,
        decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=64, max_source_positions=50,
    )  # fmt: skip
    return tf.models.whisper.modeling_whisper.WhisperEncoder(config)


def _wav2vec2() -> torch.nn.Module:
    config = tf.Wav2Vec2Config(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        conv_dim=(32, 32), conv_stride=(5, 2), conv_kernel=(10, 3), num_feat_extract_layers=2,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    return tf.Wav2Vec2Model(config)


def _clip() -> torch.nn.Module:
    text = _TEXT | {"max_position_embeddings": 32, "eos_token_id": 255}
    return tf.CLIPModel(tf.CLIPConfig(text_config=text, vision_config=_VISION, projection_dim=32))


ZOO: dict[str, Callable[[], torch.nn.Module]] = {
    "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**_DECODER)),
    "Qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**_DECODER, head_dim=16)),
    "Gemma3": lambda: tf.Gemma3ForCausalLM(
        tf.Gemma3TextConfig(**_DECODER, head_dim=16, sliding_window=8)
    ),
    "Phi3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**_DECODER, pad_token_id=0)),
    "GPT-2": lambda: tf.GPT2LMHeadModel(
        tf.GPT2Config(vocab_size=256, n_embd=64, n_layer=2, n_head=4, n_positions=64)
    ),
    "BERT": lambda: tf.BertModel(tf.BertConfig(**_TEXT)),
    "ModernBERT": lambda: tf.ModernBertModel(
        tf.ModernBertConfig(**_TEXT, pad_token_id=0, global_attn_every_n_layers=2,
                            local_attention=8)
    ),
    "T5 encoder": lambda: tf.T5EncoderModel(
        tf.T5Config(vocab_size=256, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
    ),
    "ViT": lambda: tf.ViTModel(tf.ViTConfig(**_VISION)),
    "ConvNeXt": lambda: tf.ConvNextModel(tf.ConvNextConfig(**_STAGES, image_size=64)),
    "MobileNetV2": lambda: tf.MobileNetV2Model(tf.MobileNetV2Config(image_size=64)),
    "ResNet": lambda: tf.ResNetModel(tf.ResNetConfig(embedding_size=16, **_STAGES)),
    "Whisper encoder": _whisper,
    "Wav2Vec2": _wav2vec2,
    "CLIP": _clip,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one model showed."""

    HEAD = (
        "| model | weights equal bit for bit | float32: largest error | float16: cosine |\n"
        "|---|---|---|---|"
    )

    name: str
    weights: int
    equal: int
    float32_error: float
    float16_cosine: float
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether the model meets the contract."""
        exact = self.weights == self.equal > 0
        return exact and self.float32_error <= 1e-3 and self.float16_cosine >= 0.9999

    def __str__(self) -> str:
        return (
            f"| {self.name} | {self.equal} of {self.weights} | {self.float32_error:.1e} "
            f"| {self.float16_cosine:.7f} |"
        )


def measure(name: str, folder: Path, sources: Sources | None = None) -> Row:
    """Compress, export, read back and execute one model of the zoo."""
    started = time.monotonic()
    torch.manual_seed(0)
    captured = es.load(_settled(ZOO[name]().eval()))
    small = es.compress(captured, es.plan(captured, RECIPE))
    path = folder / f"{name.replace(' ', '-')}.mlpackage"
    package = Package(es.export(small, path=path).path)
    layers = check_layers(package, small)
    types = Executor(package).inputs
    inputs = draw_inputs(types, small, calls=2, seed=0)
    if sources is not None:
        inputs.append(real_inputs(types, sources, inputs[0]))
    references = reference_outputs(small, inputs)
    error, cosine = 0.0, 1.0
    for call, reference in zip(inputs, references, strict=True):
        full = Executor(package, precision="float32").run(call)
        half = Executor(package, precision="float16").run(call)
        for key, expected in reference.items():
            error = max(error, float(np.abs(full[key] - expected).max() / np.abs(expected).max()))
            cosine = min(cosine, _cosine(half[key], expected))
    return Row(
        name=name,
        weights=len(layers),
        equal=sum(layer.equal for layer in layers),
        float32_error=error,
        float16_cosine=cosine,
        seconds=time.monotonic() - started,
    )


def _settled(module: torch.nn.Module) -> torch.nn.Module:
    """Give batch norms the statistics of a trained network, and rectified stacks their scale.

    Parameters are rounded to float16, as a checkpoint in float16 holds them and as the package
    holds what is not packed: otherwise that rounding would be measured, which is no error of ours.
    """
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.2)
            part.running_var.uniform_(0.5, 2)
        if isinstance(part, torch.nn.Conv2d):
            torch.nn.init.kaiming_uniform_(part.weight, nonlinearity="relu")
    return module.half().float()


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def write_table(path: Path, lines: list[str]) -> None:
    """Put a table between the markers of a Markdown file."""
    text = path.read_text(encoding="utf-8")
    head, _, rest = text.partition(START)
    _, _, tail = rest.partition(END)
    path.write_text("\n".join([f"{head}{START}", *lines, f"{END}{tail}"]), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(ZOO)}")
    parser.add_argument("--table", type=Path)
    parser.add_argument("--real", type=Path, nargs=3, metavar=("TEXT", "SOUNDS", "PICTURE"))
    arguments = parser.parse_args()
    sources = Sources(*arguments.real) if arguments.real else None
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.names or ZOO:
            rows.append(measure(name, Path(folder), sources))
            print(rows[-1], f"{rows[-1].seconds:.0f} s", flush=True)
    if arguments.table:
        write_table(arguments.table, [Row.HEAD, *map(str, rows)])
    return 0 if all(row.ok for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
