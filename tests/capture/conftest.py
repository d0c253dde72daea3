from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48,
              "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}),
    "bert": ("BertForMaskedLM", {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48,
             "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32}),
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 2,
             "n_positions": 32, "tie_word_embeddings": True}),
    "vit": ("ViTForImageClassification", {"hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}),
    "resnet": ("ResNetForImageClassification", {"embedding_size": 8, "hidden_sizes": [8, 16],
               "depths": [1, 1], "layer_type": "basic", "image_size": 32}),
    "mobilenet": ("MobileNetV2ForImageClassification", {"depth_multiplier": 0.25,
                  "image_size": 32}),
    "mixtral": ("MixtralForCausalLM", {"vocab_size": 64, "hidden_size": 32,
                "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
                "num_key_value_heads": 1, "num_local_experts": 4}),
    "t5": ("T5ForConditionalGeneration", {"vocab_size": 64, "d_model": 32, "d_kv": 16, "d_ff": 48,
           "num_layers": 1, "num_heads": 2}),
    "wav2vec2": ("Wav2Vec2ForCTC", {"hidden_size": 32, "intermediate_size": 48,
                 "num_hidden_layers": 1, "num_attention_heads": 2, "conv_dim": [8, 8],
                 "conv_kernel": [10, 3], "conv_stride": [5, 2], "num_conv_pos_embeddings": 8,
                 "num_conv_pos_embedding_groups": 2, "vocab_size": 16}),
    "clip": ("CLIPModel", {"projection_dim": 16,
             "text_config": {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48,
                             "num_hidden_layers": 1, "num_attention_heads": 2,
                             "max_position_embeddings": 16, "eos_token_id": 2},
             "vision_config": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
                               "num_attention_heads": 2, "image_size": 16, "patch_size": 8}}),
}  # fmt: skip


def build(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """Return a small, randomly initialized transformers model."""
    class_name, options = ARCHITECTURES[name]
    cls = getattr(transformers, class_name)
    torch.manual_seed(0)
    return cls(cls.config_class(**options)).eval().to(dtype)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Any, Path]]:
    """Save a small model once a session; return it and its directory."""
    made: dict[tuple[str, torch.dtype], tuple[Any, Path]] = {}

    def save(name: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Path]:
        if (name, dtype) not in made:
            directory = tmp_path_factory.mktemp(name)
            model = build(name, dtype)
            model.save_pretrained(directory)
            made[name, dtype] = (model, directory)
        return made[name, dtype]

    return save
