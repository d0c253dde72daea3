"""``edgesparse completion``: the script that lets a shell complete verbs and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from edgesparse.cli._console import show_json
from edgesparse.cli._options import common

SHELLS = ("bash", "zsh", "fish")


@click.command(short_help="Print a shell's completion script.")
@click.argument("shell", type=click.Choice(SHELLS))
@common
def completion(shell: str, as_json: bool) -> None:
    """Print the completion script of SHELL.

    Put 'eval "$(edgesparse completion bash)"' into ~/.bashrc, the same with zsh into ~/.zshrc, or
    'edgesparse completion fish | source' into ~/.config/fish/config.fish.
    """
    group = click.get_current_context().find_root().command
    kind = get_completion_class(shell)
    assert kind is not None, "click knows these shells"
    script = kind(group, {}, "edgesparse", "_EDGESPARSE_COMPLETE").source()
    if as_json:
        show_json({"shell": shell, "script": script})
    else:
        click.echo(script)
