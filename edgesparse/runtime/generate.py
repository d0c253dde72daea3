"""Continue a prompt on the packed weights, greedily or by sampling.

A compressed model of the Llama family runs as one compiled step (``fused.py``). Of others, those
that take and return a key/value cache cost one short forward pass for each token; the rest read
their whole prefix again for every token.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgesparse.errors import SourceError, UsageError
from edgesparse.model import CapturedModel, CompressedModel
from edgesparse.runtime.forward import first_tensor, token_key
from edgesparse.runtime.fused import FusedOptions, FusedStep
from edgesparse.runtime.llama import obstacle
from edgesparse.runtime.modules import build_packed
from edgesparse.runtime.text import tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_log = logging.getLogger(__name__)


def generate(
    model: CapturedModel | CompressedModel,
    prompt: str,
    *,
    tokens: int = 60,
    temperature: float = 0.8,
    top_k: int | None = 40,
    seed: int = 0,
    options: FusedOptions | None = None,
) -> str:
    """Return the prompt and its continuation.

    Arguments and errors are those of ``stream``.
    """
    pieces = stream(
        model, prompt, tokens=tokens, temperature=temperature, top_k=top_k, seed=seed,
        options=options,
    )  # fmt: skip
    return prompt + "".join(pieces)


def stream(
    model: CapturedModel | CompressedModel,
    prompt: str,
    *,
    tokens: int = 60,
    temperature: float = 0.8,
    top_k: int | None = 40,
    seed: int = 0,
    options: FusedOptions | None = None,
    say: Callable[[str], None] = _log.info,
) -> Iterator[str]:
    """Yield the continuation of ``prompt`` in pieces of whole characters, as it is made.

    Args:
        model: A language model; a compressed one runs on its packed weights.
        prompt: Text to continue.
        tokens: At most so many tokens; it stops earlier at the model's end-of-text token and at
            the end of its context.
        temperature: 0 takes the likeliest token; higher is more varied.
        top_k: Sample among so many likeliest tokens; None among all.
        seed: Same seed, same text.
        options: How the compiled step computes; None for its defaults.
        say: Told why a compressed model does not run as one compiled step, if it does not.

    Raises:
        UsageError: The model is no language model, or an option out of range.
        SourceError: The prompt is empty or fills the model's context.
    """
    captured = model if isinstance(model, CapturedModel) else model.captured
    if captured.task != "causal-lm":
        raise UsageError(f"{captured.name} predicts no next token, so it cannot continue a text")
    check_sampling(tokens=tokens, temperature=temperature, top_k=top_k)
    prompt_ids = encode(tokenizer(captured), prompt, _context(captured))
    tokens = min(tokens, _context(captured) - len(prompt_ids))
    step: Callable[[Tensor], Tensor]
    if isinstance(model, CompressedModel):
        capacity = len(prompt_ids) + tokens
        step = packed_step(model, capacity=capacity, options=options or FusedOptions(), say=say)
    else:
        step = _Step(_dense(model), captured)
    return continue_tokens(
        step,
        prompt_ids,
        decode=tokenizer(captured).decode,
        stop=_end_tokens(captured),
        tokens=tokens,
        temperature=temperature,
        top_k=top_k,
        seed=seed,
    )


def packed_step(
    model: CompressedModel, *, capacity: int, options: FusedOptions, say: Callable[[str], None]
) -> Callable[[Tensor], Tensor]:
    """Return what reads tokens, int64 [1, new], and returns the logits [V] that follow the last.

    Args:
        model: Computed from its packed weights.
        capacity: Tokens it has to read in all.
        options: How the compiled step computes.
        say: Told what stands in the way of that step, if anything does.
    """
    module = build_packed(model)
    stops = obstacle(module)
    if not stops:
        return FusedStep(module, capacity, options)
    say(f"runs layer by layer in torch with float32 activations: {stops} has no compiled step")
    return _Step(module, model.captured)


def continue_tokens(
    step: Callable[[Tensor], Tensor],
    prompt_ids: list[int],
    *,
    decode: Callable[[list[int]], str],
    stop: Collection[int],
    tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int,
) -> Iterator[str]:
    """Yield the continuation of a prompt in pieces of whole characters.

    Args:
        step: Reads tokens, int64 [1, new], after those before them; returns the logits [V] that
            follow the last.
        prompt_ids: The prompt.
        decode: Tokens to text.
        stop: Tokens that end a text.
        tokens: At most so many.
        temperature: As in ``stream``.
        top_k: As in ``stream``.
        seed: As in ``stream``.
    """
    generator = torch.Generator().manual_seed(seed)
    made: list[int] = []
    shown = ""
    pending = torch.tensor([prompt_ids])
    for _ in range(tokens):
        chosen = _choose(step(pending), temperature=temperature, top_k=top_k, rng=generator)
        if chosen in stop:
            break
        made.append(chosen)
        pending = torch.tensor([[chosen]])
        text = decode([*prompt_ids, *made])[len(decode(prompt_ids)) :]
        # A character of several bytes may still be half made: wait for the rest.
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            yield text[len(shown) :]
            shown = text


def check_sampling(*, tokens: int, temperature: float, top_k: int | None) -> None:
    """Refuse options out of range.

    Raises:
        UsageError: One is.
    """
    if tokens < 1:
        raise UsageError(f"tokens is {tokens}, expected at least 1")
    if not 0 <= temperature < float("inf"):
        raise UsageError(f"temperature is {temperature}, expected 0 or more")
    if top_k is not None and top_k < 1:
        raise UsageError(f"top_k is {top_k}, expected at least 1")


def encode(spoken: Tokenizer, prompt: str, context: int) -> list[int]:
    """Return the prompt's tokens, which must leave room in the context.

    Raises:
        SourceError: There are none, or too many.
    """
    ids: list[int] = spoken.encode(prompt, add_special_tokens=False).ids
    if not ids:
        raise SourceError("the prompt is empty; give at least one word to continue")
    if len(ids) >= context:
        raise SourceError(
            f"the prompt has {len(ids)} tokens, which fills the context of {context}; shorten it"
        )
    return ids


def _context(captured: CapturedModel) -> int:
    """Return the most tokens the model takes."""
    longest = captured.config.get("max_position_embeddings")
    return longest if isinstance(longest, int) else 1 << 30


def _end_tokens(captured: CapturedModel) -> set[int]:
    """Return the tokens that end a text."""
    end = captured.config.get("eos_token_id")
    return {end} if isinstance(end, int) else set(end or ())


def _dense(captured: CapturedModel) -> nn.Module:
    return captured.loader().float().eval()


class _Step:
    """Feed new tokens, return the logits of the last; keeps the cache or the prefix between."""

    def __init__(self, module: nn.Module, captured: CapturedModel) -> None:
        self._module, self._key = module, token_key(captured)
        known = inspect.signature(module.forward).parameters
        self._cached = {"past_key_values", "use_cache"} <= set(known)
        self._past: Any = None
        self._prefix = torch.zeros(1, 0, dtype=torch.int64)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return logits of shape (vocabulary,) after ``tokens``, int64 of shape (1, new)."""
        with torch.inference_mode():
            if self._cached:
                output = self._module(
                    **{self._key: tokens}, past_key_values=self._past, use_cache=True
                )
                self._past = output.past_key_values
            else:
                self._prefix = torch.cat([self._prefix, tokens], dim=1)
                output = self._module(**{self._key: self._prefix})
        return first_tensor(output)[0, -1].float()


def _choose(logits: Tensor, *, temperature: float, top_k: int | None, rng: torch.Generator) -> int:
    """Return the next token for logits of shape (vocabulary,)."""
    if temperature == 0:
        return int(logits.argmax())
    values, tokens = logits.topk(min(top_k or len(logits), len(logits)))
    probabilities = torch.softmax(values / temperature, dim=0)
    return int(tokens[torch.multinomial(probabilities, 1, generator=rng)])
