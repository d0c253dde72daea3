"""A whole model as one Core ML delegate of a ``.pte``, its weights exactly the solver's.

ExecuTorch's own partitioner and backend do the work; what they call coremltools with is ours: the
module with ``edgesparse::`` operators, their translation to ``constexpr_`` operations, and what
leads to a sine or cosine left in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesparse.errors import ExportError, MissingDependency, Unsupported
from edgesparse.exporting import Artifact
from edgesparse_converters.coreml import compat, convert, interface, translate
from edgesparse_converters.coreml.export import describe, end_tokens, functions
from edgesparse_converters.coreml.options import Options
from edgesparse_converters.executorch.cached import check_context, runner_constants
from edgesparse_converters.executorch.coreml_delegate import require_exact
from edgesparse_converters.executorch.lowering import Form, plan_uses
from edgesparse_converters.executorch.metadata import METHOD, write_metadata
from edgesparse_converters.executorch.methods import Method
from edgesparse_converters.executorch.program import read_program
from edgesparse_converters.executorch.quiet import quiet

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from edgesparse.model import CompressedModel

SYSTEM = "iOS18"
"""The oldest system with constants of few bits and with masks."""


LENGTHS_ALONE = (
    "lowering=coreml takes no other option but tokens or context: a Core ML delegate computes in "
    "float16, keeps its cache in float16 state of its own and its weights in the program"
)
ONE_BY_ONE = (
    "a prompt is read token by token: ExecuTorch's runtime makes new state for every method, so "
    "that prefill would have a cache of its own; a .mlpackage has both over one cache"
)


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """A finished program.

    Attributes:
        data: The ``.pte``.
        lowering: How each packed tensor is written in the delegate.
    """

    data: bytes
    lowering: Mapping[str, str]


def export(
    compressed: CompressedModel, path: Path, *, tokens: int | None, context: int | None
) -> Artifact:
    """Write a program that is one Core ML delegate to ``path``, and read its weights back.

    Raises:
        MissingDependency: coremltools is not installed.
        UsageError: ``tokens`` or ``context`` for a model that takes none, or both.
        Unsupported: An operator or input that Core ML has no form for, or the written file does not
            hold the weights it should.
        ExportError: coremltools fails for another reason.
    """
    planned = plan_uses(compressed, compressed.captured.skeleton())
    uses = tuple(replace(use, form=Form.COREML, reason="") for use in planned)

    captured = compressed.captured
    if context is not None:
        check_context(captured, context, 1)

    def constants(method: Method) -> dict[str, Any]:
        runner = {} if context is None else runner_constants(captured, context)
        return {**runner, METHOD: write_metadata(method, uses, "float16")}

    lowered = lower(compressed, tokens=tokens, context=context, constants=constants)
    path.write_bytes(lowered.data)
    program = read_program(path)
    require_exact(program, compressed)
    tools = ("executorch", "torch", "coremltools")
    return Artifact(
        path=path,
        target="executorch",
        nbytes=program.nbytes,
        tool_versions={name: version(name) for name in tools},
        lowering=lowered.lowering,
        notes=(
            "the delegate runs on iOS 18 and macOS 15 or newer",
            *(() if context is None else (ONE_BY_ONE,)),
        ),
    )


def lower(
    compressed: CompressedModel,
    *,
    tokens: int | None,
    context: int | None = None,
    constants: Callable[[Method], Mapping[str, Any]],
) -> Lowered:
    """Return a program whose method ``forward`` is one Core ML delegate.

    Args:
        compressed: The packed model.
        tokens: Length of a language model's input; None takes the example's.
        context: Places of a cache that the delegate keeps as state, ``forward`` then takes one
            token and its position; None keeps nothing.
        constants: Gives the constants of a program with this method.

    Raises:
        MissingDependency: coremltools is not installed.
        UsageError: ``tokens`` for a model that takes none.
        Unsupported: An operator or input that Core ML has no form for, or no cache from outside.
        ExportError: coremltools fails for another reason.
    """
    if find_spec("coremltools") is None:
        raise MissingDependency("coremltools", "coreml", "lowering=coreml")
    options = Options(system=SYSTEM, tokens=tokens, context=context, prefill=1)
    bits = {name: packed.spec.bits for name, packed in compressed.packed.items()}
    storage = translate.Storage(bits=bits)
    *_, (_, module, inputs) = functions(compressed, options)  # one token, if there is a cache
    with translate.storing(storage):
        program = convert.trace(module, inputs, fused_attention=False)
        _forget_unread(program)
        names = interface.output_names(module, inputs)
        record = {
            "weights": storage.names,
            "tokens": tokens,
            "end_tokens": end_tokens(compressed.captured),
        }
        border = _Border(names)
        with _converting(border, record):
            method = Method(module=module, inputs=inputs, outputs=names)
            data = _lower(program, constants(method), border)
    return Lowered(
        data=data,
        lowering={name: f"Core ML: {describe(form)}" for name, form in storage.written.items()},
    )


def _forget_unread(program: ExportedProgram) -> None:
    """Take constants out of a program that it does not read: a tied weight under its second name.

    Outside of the delegate they would be written once more.
    """
    from torch.export.graph_signature import InputKind

    signature = program.graph_signature
    written = set(signature.buffers_to_mutate.values())
    places = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for spec in list(signature.input_specs):
        place = places[spec.arg.name]
        if spec.kind is not InputKind.USER_INPUT and not place.users and spec.target not in written:
            signature.input_specs.remove(spec)
            program.graph.erase_node(place)
            for values in (program.state_dict, program.constants):  # either would bring it back
                values.pop(spec.target, None)
    program.graph_module.recompile()


class _Border:
    """The outputs of a program and of its delegate, which puts them in an order of its own.

    Args:
        names: Of the program's outputs, in order.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._by_node: dict[str, str] = {}

    def watch(self, partitioner: Any) -> None:
        """Learn from the program that is cut up which node each output is."""
        cut = partitioner.partition

        def partition(program: ExportedProgram) -> Any:
            nodes = program.graph_signature.user_outputs
            self._by_node = dict(zip(map(str, nodes), self._names, strict=True))
            return cut(program)

        partitioner.partition = partition

    def names(self, delegated: ExportedProgram) -> tuple[str, ...]:
        """Return the names of the delegate's outputs, in its order."""
        return tuple(self._by_node[str(n)] for n in delegated.graph_signature.user_outputs)


def _lower(program: ExportedProgram, constants: Mapping[str, Any], border: _Border) -> bytes:
    import coremltools as ct

    with quiet():
        from executorch.backends.apple.coreml.compiler import CoreMLBackend
        from executorch.backends.apple.coreml.partition import CoreMLPartitioner
        from executorch.exir import to_edge_transform_and_lower
    specs = CoreMLBackend.generate_compile_specs(
        minimum_deployment_target=getattr(ct.target, SYSTEM)
    )
    partitioner = CoreMLPartitioner(compile_specs=specs, lower_full_graph=True)
    border.watch(partitioner)
    with quiet():
        try:
            edge = to_edge_transform_and_lower(
                program, partitioner=[partitioner], constant_methods=dict(constants)
            )
            return bytes(edge.to_executorch().buffer)
        except ExportError:
            raise
        except Exception as error:  # the compiler's passes assert and raise freely
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise Unsupported(
                f"the model cannot be one Core ML delegate: {reason[:300]}; export it as a "
                ".mlpackage, or without lowering=coreml"
            ) from error


@contextmanager
def _converting(border: _Border, record: Mapping[str, Any]) -> Iterator[None]:
    """Let ExecuTorch's backend convert as ``coreml.convert`` does; it has no option for it."""
    compat.apply()
    with quiet():
        from executorch.backends.apple.coreml.compiler import CoreMLBackend

    def converted(program: ExportedProgram, specs: Any, skip_model_load: bool = True) -> _Converted:
        return _Converted(convert.convert(program, border.names(program), system=SYSTEM), record)

    backend: Any = CoreMLBackend
    own = backend.__dict__["_convert_to_mlmodel"]
    backend._convert_to_mlmodel = staticmethod(converted)
    try:
        yield
    finally:
        backend._convert_to_mlmodel = own


class _Converted:
    """What the backend asks of a model: its description, and to be saved."""

    def __init__(self, model: Any, record: Mapping[str, Any]) -> None:
        self._model, self._record = model, record

    def get_spec(self) -> Any:
        """Return the description."""
        return self._model.get_spec()

    def save(self, path: str) -> None:
        """Write the package, with our record in it."""
        convert.save(self._model, Path(path), self._record)
