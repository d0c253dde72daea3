"""The student: a captured structure whose packed tensors are latent and whose norms may move."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from edgesparse.calibrate.inputs import as_matrix
from edgesparse.calibrate.record import disable_cache
from edgesparse.calibrate.team import Team
from edgesparse.model import CapturedModel, CompressedModel
from edgesparse.packed import PackedTensor
from edgesparse.pattern import Pattern
from edgesparse.recovery.gradual import GrowingMasks
from edgesparse.recovery.hidden import Watched
from edgesparse.recovery.latent import LatentWeight
from edgesparse.recovery.sharded import put_in, shard, whole, whole_module


class Trainee(nn.Module):
    """What the loop trains: it runs a batch of keyword arguments and says its rates."""

    def groups(self, lr: float) -> list[dict[str, object]]:
        """Return the optimizer's parameter groups; each keeps its own full rate as ``base``."""
        raise NotImplementedError


class Student(Trainee):
    """A compressed model that can be trained; what it computes is what would be packed.

    Trainable are the packed tensors' latent values and scales, and the kept tensors of one
    dimension (norms and biases): they cost no further bytes.
    """

    def __init__(self, compressed: CompressedModel) -> None:
        super().__init__()
        self._compressed = compressed
        self._model = [_plain(compressed)]  # in a list: its own parameters are not ours to train
        self._is_shared = False
        self.latent = nn.ModuleDict(
            {_key(name): LatentWeight(packed) for name, packed in compressed.packed.items()}
        )
        self.free = nn.ParameterDict(
            {
                _key(name): nn.Parameter(tensor.float().clone())
                for name, tensor in compressed.kept.items()
                if tensor.dim() == 1 and tensor.is_floating_point() and self._is_parameter(name)
            }
        )

    def _is_parameter(self, name: str) -> bool:
        return name in dict(self._model[0].named_parameters(remove_duplicate=False))

    def to_device(self, device: torch.device) -> Student:
        """Move the structure and everything trainable."""
        self._model[0].to(device)
        return self.to(device)

    def share_out(self, team: Team, device: torch.device) -> Student:
        """Spread structure and everything trainable over a team; see ``recovery.sharded``.

        Raises:
            UsageError: A weight that several blocks share.
        """
        (model,) = self._model
        by_name = self._compressed.captured.by_name
        put_in(
            model,
            (
                ((name, *by_name[name].aliases), latent)
                for name, latent in self._latents()
            ),
        )  # fmt: skip
        for key, value in self.free.items():
            for name in (_name(key), *by_name[_name(key)].aliases):
                path, _, leaf = name.rpartition(".")
                model.get_submodule(path).register_parameter(leaf, value)
        shard(model, team, device, trains=True)
        # What was shared out stands in the place of what was whole.
        self.free = nn.ParameterDict({k: model.get_parameter(_name(k)) for k in self.free})
        self._is_shared = True
        return self

    def weights(self) -> dict[str, Tensor]:
        """Return every trained tensor as it would be shipped, by name."""
        shipped = {_name(key): latent() for key, latent in self.latent.items()}
        return shipped | {_name(key): value for key, value in self.free.items()}

    def forward(self, batch: Mapping[str, Tensor]) -> object:
        """Run the model on keyword arguments."""
        if self._is_shared:
            return self._model[0](**batch)
        return torch.func.functional_call(
            self._model[0], self.weights(), args=(), kwargs=dict(batch), tie_weights=True
        )

    def watch(self, paths: Sequence[str]) -> Watched:
        """Return what sees the hidden tensors that the modules at ``paths`` return."""
        return Watched(self._model[0], paths)

    def groups(self, lr: float) -> list[dict[str, object]]:
        """Return the optimizer's parameter groups; each keeps its own full rate as ``base``."""
        latents = [latent for _, latent in self._latents()]
        scales = [m.log_scales for m in latents if m.log_scales.requires_grad]
        return [
            {"params": [m.values for m in latents], "base": lr},
            {"params": scales, "base": 10 * lr},
            {"params": list(self.free.values()), "base": lr},
        ]

    def grow_masks(self, dense: Mapping[str, Tensor], *, until: float) -> GrowingMasks:
        """Go back to the dense weights with everything kept; masks grow from here on.

        Args:
            dense: The teacher's weights by name.
            until: Fraction of the training after which the masks are complete.
        """
        growing = []
        for name, latent in self._latents():
            pattern = self._pattern(name)
            if not pattern.is_dense:
                latent.restart(as_matrix(dense[name]))
                growing.append((latent, pattern))
        return GrowingMasks(growing, until=until)

    def _latents(self) -> Iterator[tuple[str, LatentWeight]]:
        for key, latent in self.latent.items():
            assert isinstance(latent, LatentWeight)
            yield _name(key), latent

    def _pattern(self, name: str) -> Pattern:
        """Return the pattern that was asked for: a format's own is wider where it holds several."""
        rule = next((p.rule for p in self._compressed.plan.tensors if p.tensor.name == name), None)
        return rule.pattern if rule is not None else self._compressed.packed[name].spec.pattern

    @torch.no_grad()
    def pack(self) -> tuple[dict[str, PackedTensor], dict[str, Tensor]]:
        """Return (packed, kept) as ``CompressedModel`` holds them; collective in a team."""
        packed = {}
        for name, latent in self._latents():
            own = whole_module(latent)
            assert isinstance(own, LatentWeight)
            packed[name] = own.pack(self._pattern(name))
        kept = dict(self._compressed.kept)
        for key, value in self.free.items():
            kept[_name(key)] = whole(value.detach()).to(kept[_name(key)].dtype).cpu()
        return packed, kept


def _plain(compressed: CompressedModel) -> nn.Module:
    """Return the structure in float32 with its kept tensors; the packed ones are overridden."""
    from edgesparse.runtime.modules import build_decoded

    model = build_decoded(compressed).requires_grad_(False)
    disable_cache(model)
    return model


def teacher_of(captured: CapturedModel, device: torch.device) -> nn.Module:
    """Return the dense model, frozen, in float32 on ``device``."""
    model = captured.loader().float().requires_grad_(False).eval().to(device)
    disable_cache(model)
    return model


def _key(name: str) -> str:
    """Return a state-dict name as a key of a ModuleDict, which may not hold dots."""
    return name.replace(".", "|")


def _name(key: str) -> str:
    return key.replace("|", ".")
