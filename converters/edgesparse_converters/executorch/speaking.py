"""A language model in a ``.pte``, read token by token in a child process that keeps its cache.

Parent and child talk in int64 and float32 over pipes: a count and as many tokens go in, the logits
[count, V] come out; a count of 0 empties the cache. The child is in ``_child.speak``.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from edgesparse.errors import SourceError, UsageError
from edgesparse_converters.executorch.program import Program, read_program
from edgesparse_converters.executorch.session import CHILD, build_kernels, failure


class SpokenProgram:
    """The parent's side of a program that is read token by token.

    Attributes:
        context: Most tokens it can have read.
        vocabulary: Logits of a token.
        end_tokens: Tokens that end a text.
    """

    def __init__(self, program: Program, child: subprocess.Popen[bytes], said: IO[bytes]) -> None:
        self.context, self.vocabulary = _sizes(program)
        self.end_tokens = frozenset(constants(program, "get_eos_ids"))
        self._path, self._child, self._said = program.path, child, said

    def reset(self) -> None:
        """Forget all tokens."""
        self._send(np.zeros(1, np.int64))

    def read(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Read ``tokens`` [T] after those before them; return the logits [T, V] of each.

        Raises:
            SourceError: The runtime failed.
        """
        self._send(np.concatenate([[len(tokens)], tokens]).astype(np.int64))
        nbytes = 4 * len(tokens) * self.vocabulary
        assert self._child.stdout is not None
        answer = self._child.stdout.read(nbytes)
        if len(answer) < nbytes:
            raise self._failure()
        return np.frombuffer(answer, np.float32).reshape(len(tokens), self.vocabulary)

    def _send(self, words: NDArray[np.int64]) -> None:
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(words.tobytes())
            self._child.stdin.flush()
        except OSError:
            raise self._failure() from None

    def _failure(self) -> SourceError:
        self._child.kill()
        code = self._child.wait()
        self._said.seek(0)
        return failure(self._path, code, self._said.read())


@contextmanager
def open_language_model(path: Path) -> Iterator[SpokenProgram]:
    """Open a ``.pte`` that is a language model, with a cache or of a fixed length.

    One of a fixed length reads everything again for every call.

    Raises:
        UsageError: It is no language model.
        SourceError: It is damaged, or the runtime fails.
    """
    program = read_program(path)
    _sizes(program)
    build_kernels(program)
    command = [sys.executable, "-m", CHILD, "speak", str(path)]
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said
        )
        try:
            yield SpokenProgram(program, child, said)
        finally:
            child.kill()
            child.communicate()


def _sizes(program: Program) -> tuple[int, int]:
    """Return how many tokens it can have read, and its vocabulary.

    Raises:
        UsageError: It is no language model.
    """
    plan = program.methods.get("forward", {"inputs": [], "outputs": [], "values": []})
    inputs, outputs = (
        [plan["values"][index]["val"] for index in plan[name]] for name in ("inputs", "outputs")
    )
    sizes = outputs[0].get("sizes", []) if outputs else []
    if not inputs or inputs[0].get("scalar_type") != "LONG" or len(sizes) != 3:
        raise UsageError(
            f"{program.path.name} is no language model: it does not turn tokens to logits"
        )
    lengths = constants(program, "get_max_context_len")
    return (lengths[0] if lengths else int(inputs[0]["sizes"][1])), int(sizes[-1])


def constants(program: Program, method: str) -> list[int]:
    """Return the integers that a constant method returns; none where there is no such method."""
    plan = program.methods.get(method)
    if plan is None:
        return []
    values: list[Any] = [plan["values"][index]["val"] for index in plan["outputs"]]
    return [int(value["int_val"]) for value in values if "int_val" in value]
