"""Programs that are one Core ML delegate: the package inside, read and run on this host.

The runtime that executes such a delegate is Apple's. What it would execute is a package like any
other, so that it is taken out of the bytes of the file and goes through the same reader and host
executor as a ``.mlpackage``.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from edgesparse.errors import SourceError, Unsupported
from edgesparse.verdict import Verdict
from edgesparse_converters.coreml.execute import Executor
from edgesparse_converters.coreml.package import Package
from edgesparse_converters.coreml.speaking import SpokenPackage
from edgesparse_converters.coreml.speaking import open_language_model as open_package
from edgesparse_converters.coreml.validation import check_layers
from edgesparse_converters.coreml.validation import validate as validate_package
from edgesparse_converters.executorch.flattened import unflatten
from edgesparse_converters.executorch.metadata import Metadata, read_metadata
from edgesparse_converters.executorch.program import COREML_BACKEND, Program

if TYPE_CHECKING:
    from edgesparse.model import CompressedModel

METHOD = "forward"


@dataclass(frozen=True, kw_only=True)
class Delegate:
    """The package inside a program.

    Attributes:
        package: Taken out, in a folder of its own.
        inputs: Its names for the method's inputs, in their order; None for one it does not take.
        outputs: Its names for the method's outputs, in their order.
    """

    package: Package
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]


@contextmanager
def open_delegate(program: Program) -> Iterator[Delegate]:
    """Take the package out of a program, for as long as the block runs.

    Raises:
        SourceError: The delegate is damaged, or does not fit the program around it.
        Unsupported: The program does more than call the one delegate.
    """
    arguments = _only_call(program)
    if arguments is None:
        raise Unsupported(
            f"{program.path}: beside its Core ML delegate it calls other operators; such a program "
            "runs on Apple's systems only"
        )
    ((_, data),) = program.delegates(METHOD)
    with tempfile.TemporaryDirectory(prefix="edgesparse.") as folder:
        unflatten(data, Path(folder), name=f"{program.path}: the Core ML delegate")
        yield _delegate(program, arguments, Path(folder))


def is_alone(program: Program) -> bool:
    """Whether ``forward`` is one call of one Core ML delegate and nothing else.

    Raises:
        SourceError: The program is damaged.
    """
    return _only_call(program) is not None


def _only_call(program: Program) -> list[int] | None:
    """Return the arguments of the one call; None where there is more, or something else."""
    try:
        plan = program.methods[METHOD]
        instructions = [i for chain in plan["chains"] for i in chain["instructions"]]
        kinds = [instruction["instr_args_type"] for instruction in instructions]
        if [d["id"] for d in plan["delegates"]] != [COREML_BACKEND] or kinds != ["DelegateCall"]:
            return None
        arguments: list[int] = instructions[0]["instr_args"]["args"]
    except (KeyError, IndexError, TypeError) as error:
        raise SourceError(f"{program.path}: damaged: its tables do not fit ({error})") from None
    return arguments


def _delegate(program: Program, arguments: list[int], folder: Path) -> Delegate:
    """Return the package with its names in the order of the method's values."""
    plan = program.methods[METHOD]
    try:
        names = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
        taken, given = list(names["inputNames"]), list(names["outputNames"])
        by_value = dict(zip(arguments, [*taken, *given], strict=True))
        inputs = tuple(by_value.get(value) for value in plan["inputs"])
        outputs = tuple(by_value[value] for value in plan["outputs"])
        fits = {name for name in inputs if name is not None} == set(taken)
        fits = fits and set(outputs) <= set(given)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(
            f"{program.path}: damaged: the Core ML delegate does not fit its method ({error})"
        ) from None
    if not fits:
        raise SourceError(
            f"{program.path}: damaged: the Core ML delegate takes {taken} and gives {given}, which "
            "does not fit the method"
        )
    return Delegate(package=Package(folder / "model.mlpackage"), inputs=inputs, outputs=outputs)


def require_exact(program: Program, compressed: CompressedModel) -> None:
    """Refuse a program in which a weight is not the packed model's, bit for bit.

    Raises:
        Unsupported: A weight differs or is not there, or not everything is in the delegate.
    """
    with open_delegate(program) as delegate:
        wrong = [c.name for c in check_layers(delegate.package, compressed) if not c.ok]
    if wrong:
        raise Unsupported(
            f"the Core ML delegate does not hold {len(wrong)} weights as chosen, first {wrong[0]}; "
            "please report it"
        )


def validate(program: Program, compressed: CompressedModel, **options: Any) -> Verdict:
    """Read the weights back from the delegate and run its package; see ``coreml.validation``.

    Raises:
        SourceError: It is damaged, or edgesparse did not write it from this model.
        Unsupported: It does more than call the one delegate.
    """
    with open_delegate(program) as delegate:
        named = read_metadata(program)
        if not _has_border(delegate, named):
            raise SourceError(
                f"{program.path}: its delegate has inputs {delegate.inputs} and outputs "
                f"{delegate.outputs}, the program {named.inputs} and {named.outputs}"
            )
        verdict = validate_package(delegate.package.path, compressed, **options)
    return replace(
        verdict,
        path=program.path,
        target="executorch",
        runtime=f"{verdict.runtime}, on the package inside the delegate",
    )


def _has_border(delegate: Delegate, named: Metadata) -> bool:
    """Whether the names are the program's; an input that nothing needs stays outside."""
    same = zip(delegate.inputs, named.inputs, strict=False)
    return (
        delegate.outputs == named.outputs
        and len(delegate.inputs) == len(named.inputs)
        and all(own in (None, name) for own, name in same)
    )


def run(program: Program, inputs: Sequence[NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    """Run ``forward`` once on inputs in its order; return its outputs by name.

    Raises:
        SourceError: It is damaged.
        Unsupported: It does more than call the one delegate, or Core ML operators that are not
            known here.
    """
    with open_delegate(program) as delegate:
        named = zip(delegate.inputs, inputs, strict=True)
        given = {name: array for name, array in named if name is not None}
        found = Executor(delegate.package).run(given)
    names = read_metadata(program).outputs
    if len(names) != len(delegate.outputs):
        names = tuple(f"output_{i}" for i in range(len(delegate.outputs)))
    return {name: found[own] for name, own in zip(names, delegate.outputs, strict=True)}


@contextmanager
def open_language_model(program: Program) -> Iterator[SpokenPackage]:
    """Open a program that is a language model, on the host executor.

    Raises:
        SourceError: It is damaged, or no language model.
        Unsupported: As ``run``.
    """
    with open_delegate(program) as delegate, open_package(delegate.package.path) as model:
        yield model
