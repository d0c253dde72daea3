"""A transformers architecture from its configuration: any class, built without weights.

Nothing in a configuration is obeyed that could run code or fetch anything: the class comes from the
installed transformers, never from the directory.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from edgesparse.capture.conform import Conformed, conform
from edgesparse.errors import CorruptPack, MissingDependency, SourceError
from edgesparse.store.strict_json import parse_object

_MAX_CONFIG_NBYTES = 1 << 24
_MAX_BUFFER_NBYTES = 1 << 30
# Keys that would choose kernels from elsewhere or code from the directory; the values are ignored.
_IGNORED = {
    "auto_map", "custom_pipelines", "attn_implementation", "_attn_implementation",
    "_attn_implementation_internal", "experts_implementation", "_experts_implementation",
    "_experts_implementation_internal", "use_pretrained_backbone", "_name_or_path",
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """A class of transformers and a configuration for it.

    Attributes:
        cls: The model class.
        config: The configuration as JSON, without what could run or fetch code.
        max_parameters: Most parameters a build may have: a configuration that asks for a billion
            layers is refused while it is being built.
    """

    cls: Any
    config: Mapping[str, Any]
    max_parameters: int

    def build(self, *, device: str) -> tuple[nn.Module, Conformed]:
        """Build the module in evaluation mode, parameters on the meta device.

        Args:
            device: ``meta`` for shapes alone, ``cpu`` for real buffers.

        Returns:
            The module, conformed, and how its tensors come from the class's own.

        Raises:
            SourceError: The class cannot be built from this configuration.
        """
        try:
            with offline(), torch.device(device), _parameters_on_meta(self.max_parameters):
                model: nn.Module = self.cls(self.new_config())
        except SourceError:
            raise
        except Exception as error:  # a class may fail on a wrong configuration in any way
            raise SourceError(
                f"{self.cls.__name__} cannot be built from this configuration: "
                f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            ) from error
        conformed = conform(model)
        return model.eval().requires_grad_(False), conformed

    def new_config(self) -> Any:
        """Return a fresh configuration object; to be called within ``offline``."""
        return self.cls.config_class.from_dict(copy.deepcopy(dict(self.config)))


def read_architecture(directory: Path, *, max_parameters: int) -> Architecture:
    """Read ``config.json`` and find the class it names.

    Raises:
        SourceError: No configuration, or one that names no architecture of transformers.
        MissingDependency: transformers is not installed.
    """
    config = _read_config(directory / "config.json")
    if "quantization_config" in config:
        raise SourceError(
            f"{directory}: the weights are quantized already; start from the original weights"
        )
    match config.get("architectures"):
        case [str(name), *_]:
            return Architecture(_find_class(name, directory), _harmless(config), max_parameters)
    raise SourceError(
        f"{directory / 'config.json'}: names no architecture; expected for example "
        '"architectures": ["LlamaForCausalLM"]'
    )


def check_buffers(module: nn.Module) -> None:
    """Refuse a module, still on the meta device, whose own tables would fill the memory.

    Raises:
        SourceError: Its buffers exceed 1 GiB.
    """
    nbytes = sum(buffer.numel() * buffer.element_size() for buffer in module.buffers())
    if nbytes > _MAX_BUFFER_NBYTES:
        raise SourceError(
            f"the configuration asks for {nbytes} bytes of tables besides the weights, at most "
            f"{_MAX_BUFFER_NBYTES} are accepted; is a length in config.json right?"
        )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_CONFIG_NBYTES:
            raise SourceError(f"{path}: larger than any configuration; damaged")
        return parse_object(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise SourceError(
            f"{path.parent}: no config.json; expected a Hugging Face model directory"
        ) from None
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror or error}") from None
    except CorruptPack as error:
        raise SourceError(str(error)) from None


def _find_class(name: str, directory: Path) -> Any:
    try:
        import transformers
    except ImportError:
        raise MissingDependency(
            "transformers", "huggingface", "reading a model directory"
        ) from None
    found = getattr(transformers, name, None) if name.isidentifier() else None
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise SourceError(
            f"{directory}: architecture {name!r} is not in transformers "
            f"{transformers.__version__}; code from a model directory is never run. Give a factory "
            "'package.module:function' instead"
        )
    return found


def _harmless(value: Any) -> Any:
    """Return a configuration without the keys that could run or fetch code, at any depth."""
    if isinstance(value, dict):
        return {key: _harmless(item) for key, item in value.items() if key not in _IGNORED}
    if isinstance(value, list):
        return [_harmless(item) for item in value]
    return value


@contextmanager
def offline() -> Iterator[None]:
    """Let nothing be fetched meanwhile: a configuration may name a backbone by its repository."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def _parameters_on_meta(limit: int) -> Iterator[None]:
    """Move every parameter to the meta device as it is registered; buffers stay real.

    Weights are thus never filled: initialization then runs on the meta device, which does nothing.
    """
    builder, count = threading.get_ident(), 0

    def hook(module: nn.Module, name: str, parameter: Any) -> Any:
        nonlocal count
        if threading.get_ident() != builder or parameter is None:
            return None
        count += 1
        if count > limit:
            raise SourceError(
                f"the configuration asks for more than {limit} parameters, far more than there are "
                "weights; is a number of layers in config.json right?"
            )
        if parameter.is_meta:
            return None
        return nn.Parameter(parameter.detach().to("meta"), requires_grad=False)

    handle = register_module_parameter_registration_hook(hook)
    try:
        yield
    finally:
        handle.remove()
