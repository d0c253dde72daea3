"""Regular expressions of recipes, which may come from strangers.

Python's engine goes back and tries again, and an expression such as ``(a+)+$`` makes it try more
often than there are seconds in a year. What is refused here is what makes that possible: a repeated
group that itself varies, and more places that vary, one after the other, than names have any use
for.
"""

from __future__ import annotations

import re
from functools import lru_cache

from edgesparse.errors import RecipeError

MAX_LENGTH = 500
MAX_PLACES = 6
"""Repeats, optional parts and groups of alternatives: sixty characters are tried in a second."""

_TOKEN = re.compile(
    r"""
    (?P<literal>\\.|\[\^?\]?(?:\\.|[^\]\\])*\])   # an escape or a class: nothing in it counts
    |(?P<open>\()|(?P<close>\))|(?P<choice>\|)
    |(?P<repeat>(?:[*+?]|\{\d*,?\d*\})[?+]?)
    """,
    re.VERBOSE | re.DOTALL,
)


@lru_cache(maxsize=64)
def compiled(expression: str) -> re.Pattern[str]:
    """Return the compiled expression.

    Raises:
        RecipeError: It is none, or could take for ever.
    """
    try:
        found = re.compile(expression)
    except (re.error, RecursionError, OverflowError) as error:
        raise RecipeError(
            f"name 're:{expression[:80]}' is no regular expression: {error}"
        ) from None
    why = _endless(expression)
    if why:
        raise RecipeError(
            f"name 're:{expression[:80]}' could take for ever to match: {why}; write it simpler, "
            "or as a glob"
        )
    return found


def _endless(expression: str) -> str:
    """Return why matching could take for ever, nothing if it cannot."""
    if len(expression) > MAX_LENGTH:
        return f"it has {len(expression)} characters, at most {MAX_LENGTH} are taken"
    places, varies, chooses = 0, [False], [False]  # of the groups that are open
    closed = (-1, False)  # where a group has just ended, and whether it varies
    for token in _TOKEN.finditer(expression):
        match token.lastgroup:
            case "open":
                varies.append(False)
                chooses.append(False)
            case "close" if len(varies) > 1:
                places += chooses.pop()
                closed = (token.end(), varies.pop())
                varies[-1] |= closed[1]
            case "choice":
                varies[-1] = chooses[-1] = True
            case "repeat" if expression[: token.start()][-1:] != "(":  # (?: and the like
                if closed == (token.start(), True) and not token.group().startswith("?"):
                    return "a repeated group varies inside"
                varies[-1] = True
                places += 1
    return f"{places} places vary, at most {MAX_PLACES} may" if places > MAX_PLACES else ""
