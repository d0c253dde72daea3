"""The row ``executorch`` of the exporter registry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesparse.errors import SourceError, Unsupported, UsageError
from edgesparse.exporting import Artifact, Verdict
from edgesparse_converters.executorch.program import Program, read_program

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgesparse.executing import LanguageModel, Timing
    from edgesparse.model import CompressedModel
    from edgesparse.planner.types import Plan, TensorPlan
    from edgesparse_converters.executorch.lowering import Use


class ExecutorchExporter:
    """Writes, reads back and runs ``.pte`` programs; see ``edgesparse.exporting.Exporter``."""

    suffix = ".pte"
    accepts = frozenset(
        [f"dense{bits}" for bits in (2, 3, 4, 8)]
        + [f"bitmask{bits}" for bits in (2, 3, 4, 8, 16)]
        + ["nm4", "n64", "column16", "block16x8"]
    )
    packages = ("executorch", "torchao")
    extra = "executorch"

    def export(
        self,
        compressed: CompressedModel,
        path: Path,
        *,
        lowering: str | Mapping[str, str] = "auto",
        activations: str = "int16",
        tokens: int | None = None,
        context: int | None = None,
        prefill: int | None = None,
        cache: str = "float32",
        cases: int = 0,
        apart: bool = False,
    ) -> Artifact:
        """Write ``compressed`` to ``path``.

        Args:
            compressed: The packed model.
            path: The file to write; it does not exist.
            lowering: ``auto``, ``packed``, ``xnnpack`` or ``float32`` for all tensors, or globs of
                tensor names to these; see ``edgesparse_converters.executorch.lowering``.
                ``coreml`` makes the whole model one Core ML delegate, for Apple's systems; with
                ``context`` it has ``forward`` alone, and the cache is state of the delegate.
            activations: How activations enter our operators: ``int8``, ``int16`` or ``float32``.
            tokens: Length of a language model's input; None takes the example's.
            context: Positions of a language model's cache: the program then has the methods
                ``forward`` for one token and ``prefill`` for several, see ``cached``. None writes
                one method without a cache.
            prefill: Tokens a call of ``prefill`` takes; None is 32. Not with a Core ML delegate.
            cache: How the cache keeps keys and values: ``float32``, or ``int8`` with a scale for
                every token and head, which takes our operators and a good quarter of the memory.
            cases: How many random inputs to write, with the outputs they should give, into a
                bundled program beside the file: the same name, ending in ``.bpte``.
            apart: Keep the weights in a tensor file beside the program, of the same name, ending
                in ``.ptd``: all but those that XNNPACK repacks.

        Raises:
            UsageError: A lowering, kind of activations, cache, number or length that cannot mean
                anything.
            Unsupported: The model cannot be traced or lowered, or the written file does not hold
                the weights it should.
        """
        from edgesparse_converters.executorch.apart import SUFFIX
        from edgesparse_converters.executorch.arithmetic import require_activations
        from edgesparse_converters.executorch.assemble import build_module
        from edgesparse_converters.executorch.caching import CACHES
        from edgesparse_converters.executorch.cases import bundle_cases
        from edgesparse_converters.executorch.lower import lower, trace
        from edgesparse_converters.executorch.lowering import COREML, Form, plan_uses
        from edgesparse_converters.executorch.memory import memory_of
        from edgesparse_converters.executorch.metadata import METHOD, write_metadata
        from edgesparse_converters.executorch.methods import cached_methods, plain_methods

        require_activations(activations)
        if lowering == COREML:
            from edgesparse_converters.executorch import coreml_lowering

            if (activations, cache) != ("int16", "float32") or cases or apart:
                raise UsageError(coreml_lowering.LENGTHS_ALONE)
            if prefill is not None:
                raise UsageError(
                    f"prefill={prefill} with lowering=coreml: {coreml_lowering.ONE_BY_ONE}"
                )
            return coreml_lowering.export(compressed, path, tokens=tokens, context=context)
        if cache not in CACHES or (cache != "float32" and context is None):
            raise UsageError(f"cache {cache!r}: one of {', '.join(CACHES)}, with context")
        if prefill is not None and context is None:
            raise UsageError(f"prefill={prefill} without context: there is no cache to fill")
        if apart and cases:
            raise UsageError("a bundled program has no place for weights apart; drop one of both")
        uses = plan_uses(compressed, compressed.captured.skeleton(), lowering)
        module = build_module(compressed, uses, activations=activations)
        if context is None:
            methods, constants = plain_methods(compressed.captured, module, tokens)
        else:
            methods, constants = cached_methods(
                compressed.captured, module, context, 32 if prefill is None else prefill,
                cache=cache, stock=all(use.form is not Form.PACKED for use in uses),
            )  # fmt: skip
        constants[METHOD] = write_metadata(methods["forward"], uses, activations, cache)
        traced = {name: trace(method.module, method.inputs) for name, method in methods.items()}
        beside = path.with_suffix(SUFFIX) if apart else None
        path.write_bytes(lower(traced, constants, apart=beside))
        program = read_program(path)
        for name in methods:
            self._guard(program, name, compressed, uses)
        notes = _notes(uses)
        if beside is not None:
            notes += (f"{beside.name} beside it holds its weights; the runtime needs both",)
        if cases:
            notes += (bundle_cases(program, compressed, uses, count=cases),)
        return Artifact(
            path=path,
            target="executorch",
            nbytes=program.nbytes + (beside.stat().st_size if beside is not None else 0),
            tool_versions={name: version(name) for name in ("executorch", "torch", "torchao")},
            lowering=_describe(uses),
            peak_nbytes=max(memory_of(program, name).peak for name in methods),
            notes=notes,
        )

    def _guard(
        self, program: Program, method: str, compressed: CompressedModel, uses: tuple[Use, ...]
    ) -> None:
        """Refuse a file in which a weight is not what it should be.

        XNNPACK's partitioner takes a layer or leaves it, silently; a layer it left would be decoded
        at run time or be wrong.
        """
        from edgesparse_converters.executorch.readback import check_layers

        checks = check_layers(program, method, uses, compressed.packed)
        wrong = [check.name for check in checks if not check.ok]
        if wrong:
            raise Unsupported(
                f"the lowered program does not hold {len(wrong)} weights as chosen, first "
                f"{wrong[0]}; lower these layers as float32, and please report it"
            )

    def validate(self, path: Path, compressed: CompressedModel, **options: Any) -> Verdict:
        """Read the weights back, run the program, compare; see ``validation.validate``."""
        program = read_program(path)
        if program.is_coreml:
            from edgesparse_converters.executorch import coreml_delegate

            return coreml_delegate.validate(program, compressed, **options)
        if "forward" not in program.methods:
            raise SourceError(f"{path}: it has no method forward; edgesparse did not write it")
        from edgesparse_converters.executorch.validation import validate

        return validate(path, compressed, **options)

    def predict_nbytes(self, plan: Plan) -> int:
        """Return the expected size of the program: weights, and the graph around them."""
        from edgesparse_converters.executorch.prediction import predict_nbytes

        return predict_nbytes(plan)

    def measure_peak(self, path: Path) -> int | None:
        """Return the resident bytes a program takes at its highest, above the bare runtime."""
        from edgesparse_converters.executorch.footprint import measure_peak

        return measure_peak(path)

    def inspect(self, path: Path) -> Mapping[str, Any]:
        """Return methods, inputs, operators, and where the bytes go.

        Raises:
            SourceError: The file is no whole ``.pte``, or its tables contradict each other.
        """
        from edgesparse_converters.executorch.inspection import inspect

        program = read_program(path)
        try:
            return inspect(program)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            kind = type(error).__name__
            raise SourceError(f"{path}: damaged: its tables do not fit ({kind}: {error})") from None

    def open_language_model(self, path: Path) -> AbstractContextManager[LanguageModel]:
        """Open a program to read tokens, in a child process; see ``edgesparse.executing``."""
        program = read_program(path)
        if program.is_coreml:
            from edgesparse_converters.executorch import coreml_delegate

            return coreml_delegate.open_language_model(program)
        from edgesparse_converters.executorch.speaking import open_language_model

        return open_language_model(path)

    def measure(self, path: Path, *, runs: int, threads: int | None) -> Timing:
        """Time ``forward`` on zeros; see ``edgesparse.executing``."""
        from edgesparse_converters.executorch.profiling import measure
        from edgesparse_converters.executorch.session import zeros

        program = read_program(path)
        if program.is_coreml:
            raise Unsupported(f"{path.name}: a Core ML delegate is timed on Apple's systems only")
        what = "forward, one token" if "prefill" in program.methods else "forward"
        return measure(path, zeros(program, "forward"), what=what, runs=runs, threads=threads)

    def product_rates(
        self, entries: Sequence[TensorPlan], *, activations: str = "int16"
    ) -> Sequence[float]:
        """Time the products with these tensors; see ``edgesparse.exporters.Paced``."""
        from edgesparse_converters.executorch.rates import product_rates

        return product_rates(entries, activations)

    def routed_as(self, entry: TensorPlan, *, activations: str = "int16") -> str | None:
        """Return which kind of ``edgesparse::routed`` could hold an expert's matrix."""
        from edgesparse_converters.executorch.rates import routed_as

        return routed_as(entry, activations)

    def run(
        self, path: Path, inputs: Mapping[str, NDArray[Any]], *, method: str = "forward"
    ) -> Mapping[str, NDArray[Any]]:
        """Execute a method once, in a child process; a Core ML delegate on the host executor."""
        from edgesparse_converters.executorch.session import execute, in_order

        program = read_program(path)
        if method == "forward" and program.is_coreml:
            from edgesparse_converters.executorch import coreml_delegate
            from edgesparse_converters.executorch.metadata import read_metadata

            names = read_metadata(program).inputs
            return coreml_delegate.run(program, in_order(program, method, names, inputs))
        outputs = execute(path, [inputs], method=method)
        if not outputs:
            raise SourceError(f"{path}: the program returned nothing")
        return outputs[0]


def _describe(uses: tuple[Use, ...]) -> dict[str, str]:
    """Return the forms of each tensor; a tied tensor may have two."""
    forms: dict[str, list[str]] = {}
    for use in uses:
        known = forms.setdefault(use.tensor, [])
        if use.form.value not in known:
            known.append(use.form.value)
    return {name: " + ".join(found) for name, found in forms.items()}


def _notes(uses: tuple[Use, ...]) -> tuple[str, ...]:
    return tuple(f"{use.name}: {use.form.value}: {use.reason}" for use in uses if use.reason)


EXPORTER = ExecutorchExporter()
