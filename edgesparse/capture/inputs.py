"""Example inputs and the task of any transformers architecture, from what its class declares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

_TOKENS = 16
_AUDIO_SAMPLES = 16_000


def task_of(model: Any) -> str:
    """Return ``causal-lm`` when a transformers model gives next-token logits, else ``generic``."""
    if not model.can_generate() or getattr(model.config, "is_encoder_decoder", False):
        return "generic"
    return "causal-lm" if model.main_input_name == "input_ids" else "generic"


def example_inputs(model: Any) -> dict[str, torch.Tensor]:
    """Return inputs of a forward pass, batch 1, by keyword.

    A model that generates text gets text alone, also when it could look at a picture as well.

    Args:
        model: A transformers model.
    """
    config, main = model.config, model.main_input_name
    wanted = {main}
    if task_of(model) == "generic" and hasattr(config, "text_config"):
        modalities = _sequence(model.input_modalities)
        names = {"text": "input_ids", "image": "pixel_values", "audio": "input_features"}
        wanted |= {names[modality] for modality in modalities if modality in names}
    makers: dict[str, Callable[[], torch.Tensor]] = {
        "input_ids": lambda: _tokens(config),
        "pixel_values": lambda: _pixels(config),
        "input_features": lambda: _features(config),
        "input_values": lambda: torch.zeros(1, _AUDIO_SAMPLES),
    }
    inputs = {name: make() for name, make in makers.items() if name in wanted}
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = _tokens(config)[:, :2]
    return inputs or dict(model.dummy_inputs)


def _tokens(config: Any) -> torch.Tensor:
    """Return token ids [1, tokens], all within the vocabulary."""
    text = config.get_text_config()
    longest = getattr(text, "max_position_embeddings", None) or _TOKENS
    vocabulary = getattr(text, "vocab_size", None) or 1
    return torch.arange(min(_TOKENS, int(longest))).remainder(int(vocabulary))[None]


def _pixels(config: Any) -> torch.Tensor:
    """Return a black picture [1, channels, height, width]."""
    vision = getattr(config, "vision_config", config)
    size = _sequence(getattr(vision, "image_size", None) or 224)
    height, width = int(size[0]), int(size[-1])
    return torch.zeros(1, int(getattr(vision, "num_channels", 3)), height, width)


def _features(config: Any) -> torch.Tensor:
    """Return a silent spectrogram [1, mel bins, frames]."""
    audio = getattr(config, "audio_config", config)
    frames = 2 * int(getattr(audio, "max_source_positions", 0) or 8)
    return torch.zeros(1, int(getattr(audio, "num_mel_bins", 80)), frames)


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (tuple, list)) else (value,)
