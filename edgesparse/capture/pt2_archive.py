"""Look into a ``.pt2`` archive before torch does; refuse what could run code or fill the memory.

``torch.export.load`` trusts its file: it unpickles, evaluates shape expressions with ``sympify``
(Python's ``eval``), resolves operator names from the ``torch`` module down, writes names from the
file into generated source, and imports modules named in tree specs. A file that passes here needs
none of that power: its tensors are raw bytes, its operators are those of ATen, its expressions are
arithmetic, its names are identifiers.

Layout (archive version 0), all records stored uncompressed under one root folder:

    models/model.json                          the graph
    data/weights/model_weights_config.json     name → record, type, sizes, strides
    data/weights/weight_<i>                    raw little-endian values
    data/constants/…                           the same for constants
    data/sample_inputs/model.pt                example inputs, a pickle of tensors
"""

from __future__ import annotations

import io
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from edgesparse.capture.pt2_expressions import check_expression
from edgesparse.errors import CorruptPack, SourceError
from edgesparse.store.strict_json import parse_object

_MAX_JSON_NBYTES = 1 << 28
_MAX_SAMPLE_NBYTES = 1 << 30
_PATH = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*", re.ASCII)
_FILE_NAME = re.compile(r"[A-Za-z0-9_.\-]+(/[A-Za-z0-9_.\-]+)*", re.ASCII)
_RECORD = re.compile(r"[A-Za-z0-9_]+")
_OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims|edgesparse|torchvision|quantized_decomposed)\.[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?"
    r"|_operator\.(getitem|add|sub|mul|truediv|floordiv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_|not_)"
    r"|torch\.sym_(int|float|max|min|not|ite|sum|sqrt)"
    r"|math\.(ceil|floor|sqrt|trunc)"
    r"|torch\.ops\.higher_order\.wrap_with_set_grad_enabled"
)
# What zipfile and struct say about damage: names that do not decode, encrypted records, …
_NOT_AN_ARCHIVE = (
    zipfile.BadZipFile, zlib.error, struct.error, ValueError, OverflowError, RuntimeError, EOFError,
    OSError, CorruptPack,
)  # fmt: skip
# Keys whose text ends up in generated source or attribute names.
_NAME_KEYS = {"name", "as_name", "parameter_name", "buffer_name", "tensor_constant_name", "fqn"}
_SPEC_KEYS = {"in_spec", "out_spec"}
_IGNORED_KEYS = {"metadata", "torch_version", "guards_code"}  # never evaluated by what we call


def check_archive(path: Path) -> None:
    """Refuse a ``.pt2`` that is damaged or asks for more than tensors and ATen operators.

    Raises:
        SourceError: It does; the message says what was found.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _Archive(archive, path).check()
    except _NOT_AN_ARCHIVE as error:
        raise SourceError(f"{path}: not a whole .pt2 archive: {error}") from None


class _Archive:
    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self._archive, self._path = archive, path
        self._records: dict[str, zipfile.ZipInfo] = {}
        self._require_plain_ending()
        roots, names = set(), set()
        for info in archive.infolist():
            root, _, name = info.filename.partition("/")
            # torch finds records without regard to case, and ends names at a NUL byte.
            if not _FILE_NAME.fullmatch(info.orig_filename) or name.lower() in names:
                raise self._refuse(f"record {info.filename!r} has no plain name, or is there twice")
            if info.compress_type != zipfile.ZIP_STORED:
                raise self._refuse(f"record {info.filename!r} is compressed, torch stores it plain")
            roots.add(root)
            names.add(name.lower())
            self._records[name] = info
        if len(roots) != 1 or "" in self._records:
            raise self._refuse("records outside of one root folder; saved by an old torch?")

    def _require_plain_ending(self) -> None:
        """Refuse an archive whose table of contents two readers could find in two places."""
        with self._path.open("rb") as file:
            file.seek(-min(22, self._path.stat().st_size), os.SEEK_END)
            ending = file.read()
        if len(ending) != 22:
            raise self._refuse("too short for an archive")
        fields = struct.unpack("<4s4H2LH", ending)
        signature, count, offset, comment = fields[0], fields[4], fields[6], fields[7]
        listed = len(self._archive.infolist())
        if (
            signature != b"PK\5\6"
            or comment
            or count not in (listed, 0xFFFF)
            or offset not in (self._archive.start_dir, 0xFFFFFFFF)
        ):
            raise self._refuse("something follows or precedes the archive")

    def check(self) -> None:
        """Check every record that ``torch.export.load`` reads."""
        if (total := sum(i.file_size for i in self._records.values())) > self._path.stat().st_size:
            raise self._refuse(f"records of {total} bytes in a smaller file")
        for name in self._records:
            if name.startswith(("data/aotinductor/", "extra/")) or name.endswith((".so", ".py")):
                raise self._refuse(f"{name!r}: compiled code and extra files are not read")
            if re.fullmatch(r"data/(weights|constants)/.*\.pt", name):
                raise self._refuse("weights in the pickled layout of an old torch; save it again")
            if name.startswith("models/") and name != "models/model.json":
                raise self._refuse(f"{name!r}: expected one model")
        for kind in ("weights", "constants"):
            self._check_payload(f"data/{kind}/", f"model_{kind}_config.json")
        self._check_samples("data/sample_inputs/model.pt")
        for key, value in _walk(self._json("models/model.json")):
            self._check_value(key, value)

    def _json(self, name: str) -> dict[str, Any]:
        return parse_object(self._read(name, _MAX_JSON_NBYTES), f"{self._path}: {name}")

    def _read(self, name: str, limit: int) -> bytes:
        if name not in self._records:
            raise self._refuse(f"no record {name!r}; expected a file of torch.export.save")
        if self._records[name].file_size > limit:
            raise self._refuse(f"record {name!r} of {self._records[name].file_size} bytes")
        return self._archive.read(self._records[name])

    def _check_payload(self, folder: str, config_name: str) -> None:
        """Every tensor is raw bytes, and no larger than its record."""
        config = self._json(folder + config_name).get("config")
        for name, payload in (config if isinstance(config, dict) else {}).items():
            match payload:
                case {"path_name": str(record), "use_pickle": False, "tensor_meta": dict(meta)}:
                    self._check_tensor(name, folder + record, meta)
                case _:
                    raise self._refuse(f"{name!r} is pickled or no tensor; that could run code")

    def _check_tensor(self, name: str, record: str, meta: dict[str, Any]) -> None:
        if not _PATH.fullmatch(name) or not _RECORD.fullmatch(record.rpartition("/")[2]):
            raise self._refuse(f"{name!r} is not the name of a tensor")
        lengths = _fixed_sizes(meta.get("sizes"))
        if lengths is None or record not in self._records:
            raise self._refuse(f"{name!r} has no fixed size or no record")
        # A record is at least one byte an element, but for expanded (stride 0) tensors, which
        # torch.export does not write.
        if math.prod(lengths) > self._records[record].file_size:
            raise self._refuse(f"{name!r} of {math.prod(lengths)} elements exceeds its record")

    def _check_samples(self, name: str) -> None:
        content = self._read(name, _MAX_SAMPLE_NBYTES)
        try:
            torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception:  # whatever it is, torch.export.load would go on to unpickle it fully
            raise self._refuse(
                "the example inputs hold more than tensors; unpickling runs code"
            ) from None

    def _check_value(self, key: str, value: object) -> None:
        """Check one text of the graph by the key it stands under."""
        if key in ("target", "as_operator") and not _OPERATOR.fullmatch(str(value)):
            raise self._refuse(f"operator {str(value)[:80]!r} is not one of ATen's")
        if key == "expr_str":
            check_expression(str(value), str(self._path))
        if key in _NAME_KEYS and not (value == "" or _PATH.fullmatch(str(value))):
            raise self._refuse(f"{str(value)[:80]!r} is no name")
        if key in _SPEC_KEYS and re.search("__enum__|default_factory", str(value)):
            raise self._refuse("a tree spec names Python objects to import")
        if key == "as_custom_obj" or key == "custom_obj":
            raise self._refuse("custom objects are not read")

    def _refuse(self, reason: str) -> SourceError:
        return SourceError(f"{self._path}: {reason}")


def _fixed_sizes(sizes: object) -> list[int] | None:
    """Return the sizes of a tensor when all are plain numbers."""
    lengths: list[int] = []
    for size in sizes if isinstance(sizes, list) else [None]:
        match size:
            case {"as_int": int(n)} if n >= 0 and n is not True:
                lengths.append(n)
            case _:
                return None
    return lengths


def _walk(value: object, key: str = "") -> Iterator[tuple[str, object]]:
    """Yield (nearest key, text) for every text of a JSON value, keys of tables included."""
    if isinstance(value, dict):
        for name, item in value.items():
            if name in _IGNORED_KEYS:
                continue
            yield "name" if key in _TABLES else "key", name
            yield from _walk(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _walk(item, "name" if key == "forward_arg_names" else key)
    elif isinstance(value, str):
        yield key, value


_TABLES = {"tensor_values", "sym_int_values", "sym_bool_values", "sym_float_values",
           "custom_obj_values", "range_constraints"}  # fmt: skip
