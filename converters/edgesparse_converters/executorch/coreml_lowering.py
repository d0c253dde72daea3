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


TOKENS_ALONE = (
    "lowering=coreml takes no other option but tokens: a Core ML delegate computes in float16 and "
    "keeps its state to itself, so that prefill and forward would each have a cache of their own; "
    "for a cache write a .mlpackage"
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


def export(compressed: CompressedModel, path: Path, *, tokens: int | None) -> Artifact:
    """Write a program that is one Core ML delegate to ``path``, and read its weights back.

    Raises:
        MissingDependency: coremltools is not installed.
        UsageError: ``tokens`` for a model that takes none.
        Unsupported: An operator or input that Core ML has no form for, or the written file does not
            hold the weights it should.
        ExportError: coremltools fails for another reason.
    """
    planned = plan_uses(compressed, compressed.captured.skeleton())
    uses = tuple(replace(use, form=Form.COREML, reason="") for use in planned)

    def constants(method: Method) -> dict[str, str]:
        return {METHOD: write_metadata(method, uses, "float16")}

    lowered = lower(compressed, tokens=tokens, constants=constants)
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
        notes=("the delegate runs on iOS 18 and macOS 15 or newer",),
    )


def lower(
    compressed: CompressedModel,
    *,
    tokens: int | None,
    constants: Callable[[Method], Mapping[str, Any]],
) -> Lowered:
    """Return a program whose method ``forward`` is one Core ML delegate.

    Args:
        compressed: The packed model.
        tokens: Length of a language model's input; None takes the example's.
        constants: Gives the constants of a program with this method.

    Raises:
        MissingDependency: coremltools is not installed.
        UsageError: ``tokens`` for a model that takes none.
        Unsupported: An operator or input that Core ML has no form for.
        ExportError: coremltools fails for another reason.
    """
    if find_spec("coremltools") is None:
        raise MissingDependency("coremltools", "coreml", "lowering=coreml")
    options = Options(system=SYSTEM, tokens=tokens)
    bits = {name: packed.spec.bits for name, packed in compressed.packed.items()}
    storage = translate.Storage(bits=bits)
    ((_, module, inputs),) = functions(compressed, options)
    with translate.storing(storage):
        program = convert.trace(module, inputs, fused_attention=False)
        names = interface.output_names(module, inputs)
        record = {
            "weights": storage.names,
            "tokens": tokens,
            "end_tokens": end_tokens(compressed.captured),
        }
        with _converting(names, record):
            data = _lower(program, constants(Method(module=module, inputs=inputs, outputs=names)))
    return Lowered(
        data=data,
        lowering={name: f"Core ML: {describe(form)}" for name, form in storage.written.items()},
    )


def _lower(program: ExportedProgram, constants: Mapping[str, Any]) -> bytes:
    import coremltools as ct

    with quiet():
        from executorch.backends.apple.coreml.compiler import CoreMLBackend
        from executorch.backends.apple.coreml.partition import CoreMLPartitioner
        from executorch.exir import to_edge_transform_and_lower
    specs = CoreMLBackend.generate_compile_specs(
        minimum_deployment_target=getattr(ct.target, SYSTEM)
    )
    partitioner = CoreMLPartitioner(compile_specs=specs, lower_full_graph=True)
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
def _converting(names: tuple[str, ...], record: Mapping[str, Any]) -> Iterator[None]:
    """Let ExecuTorch's backend convert as ``coreml.convert`` does; it has no option for it."""
    compat.apply()
    with quiet():
        from executorch.backends.apple.coreml.compiler import CoreMLBackend

    def converted(program: ExportedProgram, specs: Any, skip_model_load: bool = True) -> _Converted:
        return _Converted(convert.convert(program, names, system=SYSTEM), record)

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
