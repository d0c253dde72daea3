from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

from edgesparse.capture import load
from edgesparse.capture.pt2_expressions import check_expression
from edgesparse.errors import SourceError
from edgesparse.model import TensorKind


class Net(nn.Module):
    """Every kind of call that can be lifted, and some that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8, padding_idx=0)
        self.conv = nn.Conv1d(8, 8, 3, padding="same")
        self.norm = nn.LayerNorm(8)
        self.batch = nn.BatchNorm1d(8)
        self.up = nn.Linear(8, 12)
        self.down = nn.Parameter(torch.randn(8, 12))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("offset", torch.randn(8), persistent=False)

    def forward(self, tokens: torch.Tensor, *, gain: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.embed(tokens) * gain + self.offset
        hidden = self.batch(self.conv(hidden.transpose(1, 2))).transpose(1, 2)
        hidden = nn.functional.linear(torch.relu(self.up(self.norm(hidden))), self.down)
        hidden = self.up(hidden).sum(dim=-1, keepdim=True) + hidden  # the same layer twice
        hidden = hidden + self.attention(hidden, hidden, hidden)[0]
        return {"logits": self.head(hidden), "hidden": hidden}


Saved = tuple[Net, Path]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    torch.manual_seed(0)
    net = Net().eval()
    batch, length = Dim("batch", max=64), Dim("length", max=64)
    program = torch.export.export(
        net,
        (torch.zeros(2, 5, dtype=torch.long),),
        {"gain": torch.ones(1)},
        dynamic_shapes={"tokens": {0: batch, 1: length}, "gain": None},
    )
    path = tmp_path_factory.mktemp("pt2") / "net.pt2"
    torch.export.save(program, path)
    return net, path


def test_calls_become_layers_under_their_own_names(saved: Saved) -> None:
    captured = load(saved[1])
    assert captured.source.kind == "exported_program"
    module = captured.loader()
    layers = {name: type(layer).__name__ for name, layer in module.named_modules()}
    assert layers["embed"] == "Embedding"
    assert layers["conv"] == "Conv1d"
    assert layers["up"] == layers["head"] == layers["down"] == "Linear"
    chosen = {t.name: (t.kind.value, t.aliases) for t in captured.tensors if t.compressible}
    assert chosen == {
        "embed.weight": ("embedding", ("head.weight",)),
        "conv.weight": ("conv", ()),
        "up.weight": ("linear", ()),
        "down.weight": ("linear", ()),
        "attention.in_proj_weight.weight": ("linear", ()),
        "attention.out_proj.weight": ("linear", ()),
    }
    assert captured.by_name["norm.weight"].kind is TensorKind.NORM
    assert captured.by_name["batch.running_mean"].kind is TensorKind.NORM


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (2, 5), (3, 17)])
def test_the_program_computes_the_same_at_every_shape(
    saved: Saved, batch: int, length: int
) -> None:
    net, path = saved
    module = load(path).loader()
    tokens, gain = torch.randint(0, 11, (batch, length)), torch.full((1,), 1.5)
    with torch.no_grad():
        expected, found = net(tokens, gain=gain), module(tokens=tokens, gain=gain)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5)


def test_hooks_see_the_lifted_layers(saved: Saved) -> None:
    captured = load(saved[1])
    module = captured.loader()
    shapes = []
    module.get_submodule("up").register_forward_pre_hook(
        lambda _, inputs: shapes.append(tuple(inputs[0].shape))
    )
    with torch.no_grad():
        module(**captured.example_inputs)
    assert shapes == [(2, 5, 8), (2, 5, 8)]


def test_a_lifted_module_can_be_exported_again(saved: Saved) -> None:
    captured = load(saved[1])
    module = captured.loader()
    program = torch.export.export(module, (), dict(captured.example_inputs))
    with torch.no_grad():
        again = program.module()(**captured.example_inputs)
        once = module(**captured.example_inputs)
    assert torch.equal(again["logits"], once["logits"])


def test_a_decomposed_program_is_lifted_as_well(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5))
    inputs = (torch.randn(2, 3, 8, 8),)
    program = torch.export.export(net.eval(), inputs).run_decompositions()
    torch.export.save(program, tmp_path / "net.pt2")
    captured = load(tmp_path / "net.pt2")
    assert {t.name for t in captured.tensors if t.compressible} == {"0.weight", "3.weight"}
    with torch.no_grad():
        found = captured.loader()(**captured.example_inputs)
        torch.testing.assert_close(found, net(*inputs), rtol=0, atol=1e-6)


def test_a_weight_that_is_also_read_elsewhere_is_left_alone(tmp_path: Path) -> None:
    class Penalized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.fc(x) + self.fc.weight.abs().sum()
            return out

    program = torch.export.export(Penalized().eval(), (torch.zeros(1, 4),))
    torch.export.save(program, tmp_path / "net.pt2")
    weight = load(tmp_path / "net.pt2").by_name["fc.weight"]
    assert (weight.compressible, weight.reason) == (False, "read by another module than its own")


def rewrite(path: Path, target: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """Write the archive again with every record as ``change`` returns it; None drops it."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            name = info.filename.partition("/")[2]
            content = change(name, old.read(info))
            if content is not None:
                new.writestr(info.filename, content)
    return target


def edit_graph(path: Path, target: Path, old: str, new: str) -> Path:
    def change(name: str, content: bytes) -> bytes:
        if name == "models/model.json":
            assert old.encode() in content
            return content.replace(old.encode(), new.encode())
        return content

    return rewrite(path, target, change)


def test_an_archive_written_again_unchanged_still_loads(saved: Saved, tmp_path: Path) -> None:
    copy = rewrite(saved[1], tmp_path / "net.pt2", lambda _, content: content)
    assert load(copy).tensors == load(saved[1]).tensors


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("torch.ops.aten.relu.default", "torch.os.system", "'torch.os.system' is not one of ATen"),
        ("torch.ops.aten.relu.default", "torch.hub.load", "is not one of ATen"),
        ("torch.ops.aten.relu.default", "torch.ops.inductor._x", "is not one of ATen"),
        ("torch.ops.aten.relu.default", "_operator.methodcaller", "is not one of ATen"),
        ('"name": "tokens"', '"name": "tokens=__import__(1)"', "is no name"),
        ('["tokens", "gain"]', '["tokens", "gain=print(1)"]', "is no name"),
        ("Symbol('s", "__import__('os", "is no shape expression"),
        ("builtins.dict", "x__enum__", "names Python objects"),
        ('{"graph_module"', '["graph_module"', "not a whole .pt2 archive"),
    ],
)
def test_a_graph_that_asks_for_more_is_refused(
    saved: Saved, tmp_path: Path, old: str, new: str, message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        load(edit_graph(saved[1], tmp_path / "net.pt2", old, new))


class _Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (Path.touch, (Path("exploded"),))


def test_pickles_in_an_archive_are_never_run(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    torch.save((_Bomb(),), buffer)
    bomb = buffer.getvalue()

    def as_samples(name: str, content: bytes) -> bytes:
        return bomb if name == "data/sample_inputs/model.pt" else content

    def as_weight(name: str, content: bytes) -> bytes:
        if name.endswith("weights_config.json"):
            return content.replace(b'"use_pickle": false', b'"use_pickle": true')
        return bomb if name == "data/weights/weight_0" else content

    for change, message in ((as_samples, "more than tensors"), (as_weight, "is pickled")):
        with pytest.raises(SourceError, match=message):
            load(rewrite(saved[1], tmp_path / "net.pt2", change))
    assert not (tmp_path / "exploded").exists()


def test_sizes_that_exceed_the_file_are_refused(saved: Saved, tmp_path: Path) -> None:
    def change(name: str, content: bytes) -> bytes:
        if not name.endswith("weights_config.json"):
            return content
        config = json.loads(content)
        config["config"]["up.weight"]["tensor_meta"]["sizes"][0]["as_int"] = 10**12
        return json.dumps(config).encode()

    with pytest.raises(SourceError, match=r"'up\.weight' of 8000000000000 elements exceeds"):
        load(rewrite(saved[1], tmp_path / "net.pt2", change))


@pytest.mark.parametrize("name", ["data/aotinductor/model/x.so", "extra/x", "models/other.json"])
def test_records_that_do_not_belong_are_refused(saved: Saved, tmp_path: Path, name: str) -> None:
    target = Path(shutil.copy(saved[1], tmp_path / "net.pt2"))
    with zipfile.ZipFile(target, "a") as archive:
        archive.writestr(f"net/{name}", b"")
    with pytest.raises(SourceError, match=r"not read|expected one model"):
        load(target)


def test_archives_that_two_readers_see_differently_are_refused(
    saved: Saved, tmp_path: Path
) -> None:
    content = saved[1].read_bytes()
    for i, changed in enumerate((b"prefix" + content, content + b"suffix", content[:-30])):
        target = tmp_path / f"{i}.pt2"
        target.write_bytes(changed)
        with pytest.raises(SourceError, match=r"precedes the archive|not a whole \.pt2"):
            load(target)
    target = Path(shutil.copy(saved[1], tmp_path / "case.pt2"))
    with zipfile.ZipFile(target, "a") as archive:
        archive.writestr("net/models/MODEL.json", b"{}")
    with pytest.raises(SourceError, match="is there twice"):
        load(target)


@pytest.mark.parametrize(
    "text",
    [
        "Symbol('s0', positive=True, integer=True)",
        "Mul(Integer(2), FloorDiv(Symbol('u3'), Integer(4)))",
        "s0*2 + 1",
        "Eq(s0, 3)",
        "Pow(Symbol('s27', positive=True, integer=True), Integer(2))",
    ],
)
def test_shape_expressions_are_accepted(text: str) -> None:
    check_expression(text, "file")


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "s0.__class__",
        "Symbol('x y')",
        "(lambda: 1)()",
        "[1]*10**9",
        "9**9**9",
        "Pow(9, 9)",
        "Pow(Integer(9), Integer(99999999))",
        "Pow(Pow(Pow(Pow(Integer(9), Integer(8)), Integer(8)), Integer(8)), Integer(8))",
        "Symbol('s0', commutative=False)",
        "'a'*1000000",
        "10000000000000000000000",
        "(" * 3000 + ")" * 3000,
        "",
        "f'{1}'",
    ],
)
def test_other_expressions_are_refused(text: str) -> None:
    with pytest.raises(SourceError, match="no shape expression"):
        check_expression(text, "file")
