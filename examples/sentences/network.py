"""A small BERT whose mean output says what a sentence is about: 1.6 million weights.

Sentences that follow each other in a book point the same way; the tokenizer is that of the bundled
language model.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import BertConfig, BertModel

TOKENS, WIDTH = 32, 160
MODELS = Path(__file__).parents[1] / "models"
WEIGHTS = MODELS / "sentences/model.safetensors"


class SentenceEncoder(nn.Module):
    """Token ids ``[batch, 32]`` and what of them is text to unit vectors ``[batch, 160]``."""

    def __init__(self) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=4096, hidden_size=WIDTH, num_hidden_layers=3, num_attention_heads=4,
            intermediate_size=4 * WIDTH, max_position_embeddings=TOKENS, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        self.bert = BertModel(config, add_pooling_layer=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the mean of the outputs at the text's tokens, scaled to length one."""
        outputs = self.bert(input_ids=input_ids, attention_mask=attention_mask)
        weights = attention_mask[..., None].to(outputs.last_hidden_state.dtype)
        return nn.functional.normalize((outputs.last_hidden_state * weights).sum(1), dim=-1)


def make() -> tuple[nn.Module, dict[str, Tensor]]:
    """Return the trained encoder and example inputs: what ``edgesparse.load`` takes."""
    encoder = SentenceEncoder()
    encoder.load_state_dict({k: v.float() for k, v in load_file(WEIGHTS).items()})
    return encoder.eval(), tokenized(["It was a dark evening."])


def tokenized(sentences: Sequence[str]) -> dict[str, Tensor]:
    """Return the first 32 tokens of each sentence and where there are any."""
    tokenizer = Tokenizer.from_file(str(MODELS / "classics-4m/tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    encoded = tokenizer.encode_batch(list(sentences))
    return {
        "input_ids": torch.tensor([e.ids for e in encoded]),
        "attention_mask": torch.tensor([e.attention_mask for e in encoded]),
    }


def sentences_of(text: str) -> list[str]:
    """Return the sentences of eight words and more, in order."""
    found = re.split(r"(?<=[.!?])[”\"’']?\s+", text)
    return [" ".join(s.split()) for s in found if len(s.split()) >= 8]
