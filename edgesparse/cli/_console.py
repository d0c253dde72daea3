"""Where output goes: results to stdout, progress to stderr, colour only to terminals."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

PIPE_WIDTH = 500
NOISY = (
    "coremltools", "executorch", "torch", "torch.utils._pytree", "torchao", "transformers",
)  # fmt: skip
Step = Callable[[int, int], None]


@dataclass
class Verbosity:
    """How much is said on stderr.

    Attributes:
        quiet: Errors only.
        verbose: Log lines of the library too.
        debug: Tracebacks and warnings too.
        arguments: The words of the command line, for what remembers how it was made.
    """

    quiet: bool = False
    verbose: bool = False
    debug: bool = False
    arguments: tuple[str, ...] = ()


def verbosity() -> Verbosity:
    """Return the settings of the command line being run."""
    found = click.get_current_context().find_object(Verbosity)
    return found if found is not None else Verbosity()


def command_line() -> str:
    """Return the command being run, as it could be typed again."""
    return shlex.join(("edgesparse", *verbosity().arguments))


def configure_logging(settings: Verbosity) -> None:
    """Send the library's log lines to stderr, as far as ``settings`` wants them."""
    level = logging.DEBUG if settings.debug else logging.INFO if settings.verbose else logging.ERROR
    logging.getLogger("edgesparse").setLevel(level)
    if settings.verbose or settings.debug:
        logging.basicConfig(stream=sys.stderr, format="%(name)s: %(message)s")
    for noisy in NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING if settings.debug else logging.ERROR)


def output() -> Console:
    """Return the console for results.

    In a pipe it is as wide as any table, so that lines are whole for other programs.
    """
    from rich.console import Console

    # Names of layers are data: brackets and colons in them mean nothing.
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console


def show(*renderables: RenderableType) -> None:
    """Print results for a person."""
    console = output()
    for renderable in renderables:
        console.print(renderable)


def show_json(data: Mapping[str, Any]) -> None:
    """Print one JSON document: the stable form for programs; nan and infinity become null."""
    click.echo(json.dumps(_finite(data), indent=2, sort_keys=False, allow_nan=False, default=str))


def remark(message: str) -> None:
    """Say something on stderr that is not a result."""
    if not verbosity().quiet:
        click.echo(message, err=True)


@contextmanager
def working(what: str) -> Iterator[Step]:
    """Show a bar with the time left on a terminal's stderr; nothing in a pipe.

    Yields:
        What the library calls with (steps done, steps in all); until then the bar only pulses.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if verbosity().quiet or not console.is_terminal:
        yield lambda _done, _total: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
