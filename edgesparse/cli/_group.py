"""The command group: verbs loaded on use, and every way of failing turned into one line.

Help, unknown verbs and wrong options cost no import of torch: a verb's module is imported only when
that verb is asked for, and it imports the library inside its function.
"""

from __future__ import annotations

import difflib
import importlib
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import click

from edgesparse.cli._console import Verbosity, configure_logging
from edgesparse.errors import EdgesparseError

INTERRUPTED = 130


class VerbGroup(click.Group):
    """A click group whose verbs are a table of ``name -> "module:attribute"``."""

    def __init__(self, name: str, *, verbs: Mapping[str, str], **options: Any) -> None:
        super().__init__(name, no_args_is_help=True, **options)
        self._verbs = dict(verbs)
        self.params.append(
            click.Option(
                ["--version"],
                is_flag=True,
                expose_value=False,
                is_eager=True,
                callback=_print_version,
                help="Print the version.",
            )
        )

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order of the pipeline."""
        return list(self._verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one verb."""
        if cmd_name not in self._verbs:
            return None
        module, _, attribute = self._verbs[cmd_name].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb; a wrong one is answered with the nearest."""
        if args and args[0] not in self._verbs and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], self._verbs, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(self._verbs)}"
            raise click.UsageError(f"no command {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def main(self, args: Sequence[str] | None = None, **options: Any) -> NoReturn:  # type: ignore[override]
        """Run a command line and exit with its code; no failure prints a traceback."""
        options["standalone_mode"] = False
        args = list(sys.argv[1:] if args is None else args)
        verbosity = Verbosity(arguments=tuple(args))
        with warnings.catch_warnings(), _termination():
            # Libraries warn about their own internals; `--debug` shows those too.
            warnings.simplefilter("ignore")
            sys.exit(self._run(verbosity, args, options))

    def _run(self, verbosity: Verbosity, args: list[str], options: dict[str, Any]) -> int:
        try:
            configure_logging(verbosity)
            code = super().main(args, obj=verbosity, **options)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            return error.exit_code
        except click.ClickException as error:
            return _fail(_usage(error), error.exit_code)
        except EdgesparseError as error:
            return _fail(str(error), error.exit_code, error, verbosity)
        except (click.Abort, KeyboardInterrupt) as error:
            said = str(error.__cause__ or error)  # click turns an interrupt into an Abort
            return _fail(said or "interrupted; nothing was left behind", INTERRUPTED)
        except Exception as error:
            return _fail(_unexpected(error), 1, error, verbosity)
        return code if isinstance(code, int) else 0


def _fail(
    message: str,
    code: int,
    error: BaseException | None = None,
    verbosity: Verbosity | None = None,
) -> int:
    if error is not None and verbosity is not None and verbosity.debug:
        traceback.print_exception(error, file=sys.stderr)
    click.echo(f"error: {message}", err=True)
    return code


def _usage(error: click.ClickException) -> str:
    message = error.format_message().strip().replace("\n", " ")
    context = error.ctx if isinstance(error, click.UsageError) else None
    return message + (f" See '{context.command_path} --help'." if context else "")


def _unexpected(error: Exception) -> str:
    """Say in one line what no part of the library foresaw: a full disk, or a defect of ours."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'the operating system'}: {error.strerror}"
    if isinstance(error, MemoryError):
        return "out of memory; close other programs or use a smaller --windows"
    first = next(iter(str(error).splitlines()), "")
    return (
        f"unexpected {type(error).__name__}: {first} (a defect of edgesparse; "
        "--debug shows the traceback to report)"
    )


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        from edgesparse import __version__

        click.echo(f"edgesparse {__version__}")
        ctx.exit()


@contextmanager
def _termination() -> Iterator[None]:
    """Let SIGTERM unwind like Ctrl-C does, so that temporary files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _terminate(signum: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signum)
