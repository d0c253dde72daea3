"""Every way of failing is one line on stderr and an exit code; help loads nothing heavy."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from edgesparse.cli import VERBS, main
from edgesparse.cli._group import VerbGroup
from edgesparse.errors import BudgetExceeded, EdgesparseError, SourceError, UsageError
from edgesparse.exporters import EXPORTERS


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def failing(failure: BaseException) -> VerbGroup:
    """Return a group whose only verb raises ``failure``."""
    group = VerbGroup("edgesparse", verbs={"fail": f"{__name__}:unused"})

    @click.command("fail")
    def fail() -> None:
        raise failure

    group.get_command = lambda ctx, cmd_name: fail  # type: ignore[method-assign]
    return group


def test_no_arguments_lists_every_verb() -> None:
    result = run()
    assert result.exit_code == 2
    for verb in VERBS:
        assert f"  {verb} " in result.output


def _commands() -> list[tuple[str, ...]]:
    """Return every command a person can type, those of groups too."""
    found: list[tuple[str, ...]] = []
    for verb in VERBS:
        command = main.get_command(click.Context(main), verb)
        below = (
            command.list_commands(click.Context(command))
            if isinstance(command, click.Group)
            else []
        )
        found.extend([(verb, name) for name in below] or [(verb,)])
    return found


@pytest.mark.parametrize("words", _commands(), ids=" ".join)
def test_every_command_has_help_json_and_debug(words: tuple[str, ...]) -> None:
    result = run(*words, "--help")
    assert result.exit_code == 0
    for option in ("--json", "--quiet", "--debug"):
        assert option in result.output


@pytest.mark.parametrize("verb", ["plan", "compress", "search", "export"])
def test_the_help_of_target_names_every_exporter(verb: str) -> None:
    said = run(verb, "--help").output
    assert all(name in said for name in EXPORTERS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["comprss"], "error: no command 'comprss'; did you mean 'compress'?"),
        (["zzz"], "error: no command 'zzz'; known: plan, prune, compress"),
        (["plan"], "error: Missing argument 'MODEL'"),
        (["plan", "m", "--sparsty", "0.5"], "Did you mean '--sparsity'?"),
        (["plan", "m", "--sparsity", "half"], "'half' is not a valid float"),
        (["plan", "m", "--budget", "file=2.2XB"], "size '2.2XB'"),
        (["plan", "m", "--budget", "flie=2MB"], "unknown key 'flie'"),
        (["plan", "m", "--pattern", "16x1"], "add --sparsity"),
        (["plan", "m", "--pattern", "2/4", "--sparsity", "0.5"], "pattern '2/4'"),
        (["plan", "m", "--bits", "5"], "bits is 5"),
        (["plan", "m", "--recipe", "r.toml", "--bits", "4"], "--recipe replaces --bits"),
        (["plan", "m", "--recipe", "nothere.toml"], "nothere.toml"),
    ],
)
def test_misuse_is_one_line_and_exit_2(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("failure", "code", "line"),
    [
        (SourceError("the model is gone"), 1, "error: the model is gone"),
        (UsageError("say it otherwise"), 2, "error: say it otherwise"),
        (BudgetExceeded("too large"), 3, "error: too large"),
        (KeyboardInterrupt(), 130, "error: interrupted; nothing was left behind"),
        (
            OSError(errno.ENOSPC, "No space left on device", "out/x"),
            1,
            "error: out/x: No space left on device",
        ),
        (MemoryError(), 1, "error: out of memory"),
        (ValueError("first\nsecond"), 1, "error: unexpected ValueError: first (a defect"),
    ],
)
def test_every_failure_is_one_line(failure: BaseException, code: int, line: str) -> None:
    result = CliRunner().invoke(failing(failure), ["fail"])
    assert result.exit_code == code
    last = result.stderr.strip().splitlines()
    assert len(last) == 1
    assert last[0].startswith(line)
    assert "Traceback" not in result.output


def test_exit_codes_follow_the_error_tree() -> None:
    codes = {error.exit_code for error in _all_errors()}
    assert codes == {1, 2, 3}


def _all_errors() -> list[type[EdgesparseError]]:
    found: list[type[EdgesparseError]] = [EdgesparseError]
    for error in found:
        found.extend(error.__subclasses__())
    return found


@pytest.mark.parametrize("arguments", [["--version"], ["compress", "--help"], ["plna"]])
def test_nothing_heavy_is_imported_before_it_is_needed(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from edgesparse.cli import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "except SystemExit:\n"
        "    pass\n"
        "heavy = {'torch', 'numba', 'transformers', 'coremltools', 'executorch', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stderr.strip().splitlines()[-1] == "[]"


def test_the_installed_command_is_this_group() -> None:
    command = Path(sys.executable).parent / "edgesparse"
    done = subprocess.run([command, "plna"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "error: no command 'plna'; did you mean 'plan'? See 'edgesparse --help'.\n"
    )
