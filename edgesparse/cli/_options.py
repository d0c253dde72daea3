"""Options that several verbs share, and the recipe they add up to."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgesparse.budget import Budget
from edgesparse.cli._console import Verbosity
from edgesparse.errors import UsageError

if TYPE_CHECKING:
    from edgesparse.recipe import Recipe, Rule

F = TypeVar("F", bound=Callable[..., Any])


class BudgetType(click.ParamType[Budget]):
    """``file=2.2MB,peak=12MB`` or a bare size."""

    name = "budget"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Budget:
        """Parse the text; a mistake is a usage error that names the option."""
        try:
            return value if isinstance(value, Budget) else Budget.parse(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


class SettingType(click.ParamType["tuple[str, bool | int | str]"]):
    """``key=value``: whole numbers and true or false as such, anything else as text."""

    name = "setting"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, bool | int | str]:
        """Return the key and what it is set to."""
        key, equals, text = str(value).partition("=")
        if not equals or not key.isidentifier():
            self.fail(f"{value!r}: expected KEY=VALUE", param, ctx)
        if text in ("true", "false"):
            return key, text == "true"
        return key, int(text) if text.lstrip("-").isdigit() else text


def _set(name: str) -> Callable[[click.Context, click.Parameter, bool], None]:
    def callback(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        if value:
            from edgesparse.cli._console import configure_logging

            settings = ctx.ensure_object(Verbosity)
            setattr(settings, name, True)
            configure_logging(settings)

    return callback


def common(function: F) -> F:
    """Add what every verb has: ``--json``, ``--quiet``, ``--verbose``, ``--debug``."""
    flags = (
        ("--debug", "debug", "Show tracebacks and the warnings of libraries."),
        ("--verbose", "verbose", "Show the library's log lines on stderr."),
        ("--quiet", "quiet", "Say nothing on stderr but errors."),
    )
    for flag, name, text in flags:
        option = click.option(
            flag, is_flag=True, expose_value=False, callback=_set(name), help=text
        )
        function = option(function)
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(
        function
    )


source_option = click.option(
    "--source", metavar="SOURCE",
    help="The original again, when it was a package.module:factory or a .pt2 file.",
)  # fmt: skip
directory_option = click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Directory to write.",
)
deflate_option = click.option(
    "--deflate", is_flag=True,
    help="Entropy-code the saved masks and codes: smaller to send, expanded at every load.",
)  # fmt: skip
force_option = click.option("--force", is_flag=True, help="Replace what is at the output path.")
budget_option = click.option(
    "--budget", type=BudgetType(), metavar="SIZE",
    help="What the model may cost: file=2.2MB, or file=2.2MB,peak=12MB.",
)  # fmt: skip
target_option = click.option(
    "--target", metavar="NAME",
    help="Whose file the budget is for: coreml, executorch or coreai.",
)  # fmt: skip
planned_option = click.option(
    "-O", "--option", "settings", multiple=True, type=SettingType(), metavar="KEY=VALUE",
    help="An option that export will be given and times depend on: activations=int8.",
)  # fmt: skip
allow_option = click.option(
    "--allow", type=click.Choice(["structured", "patterns"]), multiple=True,
    help="structured: cut whole neurons, layers or experts out first, where that is cheaper. "
    "patterns: let the plan choose N:M and 16x1 masks, which a --target stores smaller and "
    "multiplies faster.",
)  # fmt: skip
text_option = click.option(
    "--text", type=click.Path(path_type=Path), metavar="FILE", help="Text to measure on."
)


def cache_directory() -> Path | None:
    """Return where measured losses are kept: ``$EDGESPARSE_CACHE``, else the user's cache.

    An empty ``EDGESPARSE_CACHE`` keeps none.
    """
    given = os.environ.get("EDGESPARSE_CACHE")
    if given is not None:
        return Path(given) if given else None
    try:
        shared = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # a user without a home keeps none
        return None
    return Path(shared) / "edgesparse"


class GroupSize(click.ParamType[int | str]):
    """Columns, or one of the words a recipe file may have in their place."""

    name = "columns"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        """Return the number or the word."""
        if value in ("channel", "tensor"):
            return str(value)
        return int(click.INT.convert(value, param, ctx))


def recipe_options(function: F) -> F:
    """Add the options that describe what is done to every tensor."""
    options = (
        click.option("--sparsity", type=float, help="Fraction of weights removed, 0 to below 1."),
        click.option("--pattern", metavar="PATTERN", help="unstructured, 2:4, 16x1, …"),
        click.option("--bits", type=int, help="Bits of a kept weight: 2, 3, 4, 8 or 16."),
        click.option(
            "--group-size", type=GroupSize(), help="Columns that share a scale, channel or tensor."
        ),
        click.option(
            "--scheme", metavar="NAME", help="What codes mean: symmetric, asymmetric or table."
        ),
        click.option("--table-rows", type=int, help="Rows that share a table; 0 for one of all."),
        click.option("--method", metavar="NAME", help="How weights are chosen for removal."),
        click.option("--quantizer", metavar="NAME", help="How kept weights get their codes."),
        click.option("--embedding-bits", type=int, help="Bits of embeddings and tied heads."),
        click.option(
            "--recipe", "recipe_file", type=click.Path(path_type=Path), metavar="TOML",
            help="Rules by layer; replaces the options above.",
        ),
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def recipe_from(options: dict[str, Any]) -> Recipe | None:
    """Return the recipe that the recipe options add up to; None when none was given.

    What was not asked for stays open to the planner: it may lower bits or raise sparsity there to
    meet a budget.

    Raises:
        UsageError: Options that contradict each other.
    """
    from edgesparse.recipe import Recipe

    given = {name: value for name, value in options.items() if value is not None}
    file = given.pop("recipe_file", None)
    if file is None:
        return Recipe((_embedding_rule(given), _main_rule(given))) if given else None
    if given:
        name = next(iter(given)).replace("_", "-")
        raise UsageError(f"--recipe replaces --{name}; say it in the recipe file instead")
    return Recipe.from_toml(file)


def opened(recipe: Recipe | None, allow: Sequence[str]) -> tuple[Recipe | None, bool]:
    """Return the recipe with what ``--allow`` opens, and whether whole parts may be cut."""
    from edgesparse.planner.default import with_patterns

    return with_patterns(recipe) if "patterns" in allow else recipe, "structured" in allow


_PLAIN = ("bits", "group_size", "scheme", "table_rows", "method", "quantizer")


def _main_rule(given: dict[str, Any]) -> Rule:
    """Return the rule for every compressible tensor that is no embedding."""
    from edgesparse.pattern import Pattern
    from edgesparse.planner.default import EVERYTHING
    from edgesparse.recipe import group_fields

    pattern = given.get("pattern", "unstructured")
    if "pattern" in given and "sparsity" not in given and ":" not in pattern:
        raise UsageError(f"--pattern {pattern} does not say how much to remove; add --sparsity")
    asked = {"sparsity" if name == "pattern" else name for name in given}
    chosen = {n: given[n] for n in _PLAIN if n in given}
    if "group_size" in given:
        chosen |= group_fields(given["group_size"])
    return replace(
        EVERYTHING,
        pattern=Pattern.parse(pattern, sparsity=given.get("sparsity", 0.0)),
        adjustable=EVERYTHING.adjustable - asked,
        **chosen,
    )


def _embedding_rule(given: dict[str, Any]) -> Rule:
    """Return the rule for embeddings: quantized, never pruned; open to a budget unless given."""
    from edgesparse.planner.default import EMBEDDINGS

    if "embedding_bits" in given:
        return replace(EMBEDDINGS, bits=given["embedding_bits"], adjustable=frozenset())
    if given.get("bits") == 16:
        return replace(EMBEDDINGS, bits=16)
    return EMBEDDINGS
