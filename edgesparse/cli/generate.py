"""``edgesparse generate``: continue a prompt on the packed weights."""

from __future__ import annotations

from typing import Any

import click

from edgesparse.cli._console import remark, show_json
from edgesparse.cli._models import is_artifact, open_model
from edgesparse.cli._options import common, source_option


@click.command(short_help="Continue a prompt on the packed weights.")
@click.argument("model")
@click.option("--prompt", required=True, help="Text to continue.")
@click.option("--tokens", default=60, show_default=True, help="At most so many new tokens.")
@click.option("--temperature", default=0.8, show_default=True, help="0 takes the likeliest token.")
@click.option("--top-k", default=40, show_default=True, help="Sample among so many; 0 is all.")
@click.option("--seed", default=0, show_default=True, help="Same seed, same text.")
@click.option("--threads", default=1, show_default=True, help="Threads that share each product.")
@click.option(
    "--activations",
    type=click.Choice(["int16", "int8"]),
    default="int16",
    show_default=True,
    help="int16 is nearly exact, int8 faster.",
)
@click.option("--byte-cache", is_flag=True, help="Keep keys and values as int8.")
@source_option
@common
def generate(
    model: str,
    prompt: str,
    tokens: int,
    temperature: float,
    top_k: int,
    seed: int,
    threads: int,
    activations: str,
    byte_cache: bool,
    source: str | None,
    as_json: bool,
) -> None:
    """Continue a prompt with MODEL, compressed or dense, as it comes.

    MODEL may be a .pte or .mlpackage, which then runs here on this host, with the tokenizer beside
    it or of --source DIR.
    """
    sampling: dict[str, Any] = {
        "tokens": tokens, "temperature": temperature, "top_k": top_k or None, "seed": seed,
    }  # fmt: skip
    if is_artifact(model):
        from edgesparse.executing import stream_text

        pieces = stream_text(model, prompt, tokenizer=source, **sampling)
    else:
        opened = open_model(model, source)
        from edgesparse.runtime import stream
        from edgesparse.runtime.fused import FusedOptions

        options = FusedOptions.parse(activations, threads=threads, byte_cache=byte_cache)
        pieces = stream(opened, prompt, options=options, say=remark, **sampling)
    if as_json:
        show_json({"prompt": prompt, "continuation": "".join(pieces), "seed": seed})
        return
    first = next(pieces, "")  # what is wrong shows before the prompt is echoed
    click.echo(prompt + first, nl=False)
    for piece in pieces:
        click.echo(piece, nl=False)
    click.echo()
