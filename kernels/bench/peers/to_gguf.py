"""Write a Llama model directory as a Q4_0 GGUF file without a tokenizer, for llama.cpp.

    python kernels/bench/peers/to_gguf.py MODEL model.gguf

Needs the package gguf, which llama.cpp brings along (gguf-py).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

_NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


def _name(name: str) -> str:
    """Return the name GGUF has for a tensor of transformers."""
    whole = {
        "model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }  # fmt: skip
    if name in whole:
        return whole[name]
    _, _, layer, part = name.split(".", 3)
    return f"blk.{layer}.{_NAMES[part.removesuffix('.weight')]}.weight"


def _interleaved(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Reorder rows: GGUF turns neighbouring dimensions of a head, transformers its halves."""
    split = weight.reshape(heads, 2, -1, weight.shape[1])
    return split.swapaxes(1, 2).reshape(weight.shape)


def convert(source: Path, target: Path) -> None:
    """Write ``target`` from the directory ``source``."""
    config = json.loads((source / "config.json").read_text())
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    for name, stored in load_file(source / "model.safetensors").items():
        weight = stored.astype(np.float32)
        for leaf, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if leaf in name:
                weight = _interleaved(weight, config[heads])
        if weight.ndim == 1:
            writer.add_tensor(_name(name), weight)
            continue
        kind = gguf.GGMLQuantizationType.Q4_0
        writer.add_tensor(_name(name), gguf.quants.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("gguf", type=Path)
    arguments = parser.parse_args()
    convert(arguments.model, arguments.gguf)


if __name__ == "__main__":
    main()
