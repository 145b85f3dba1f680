"""Arrays by name from safetensors and npz files, whose content tells what they are."""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..arguments import shown
from ..backends import as_numpy
from ..checkpoints import FORMAT, CheckpointError
from ..data.readers import DataError, read_npz
from .steps import Host

DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2", "I64": "<i8", "I32": "<i4"}
"""Of safetensors; the rest of its dtypes holds no weights."""


class Found(NamedTuple):
    """Arrays of floats, or whole numbers, by name."""

    where: str
    """What a refusal begins with."""
    arrays: dict[str, Host]
    ordered: bool
    """Whether they stand in the order of the modules."""


def read(source: Any) -> Found:
    """The arrays of a file or of a mapping."""
    if isinstance(source, Mapping):
        return Found("file_or_mapping", {_name(name): _host(name, value) for name, value in source.items()}, True)
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"file_or_mapping: expected a path or a mapping from names to arrays, got {shown(source)}")
    path = Path(source)
    try:
        zipped = zipfile.is_zipfile(path)
        found = _read_zip(path) if zipped else _read_safetensors(path, path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    return Found(str(path), {name: _host(name, array) for name, array in found.items()}, zipped)


def _read_zip(path: Path) -> dict[str, Host]:
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith("data.pkl") for name in archive.namelist()):
            raise CheckpointError(
                f"{path}: expected safetensors or npz, got a file of torch.save, which may run code when it is read; "
                "where you trust it: safetensors.torch.save_file(torch.load(FILE, weights_only=True), NEW)"
            )
    try:
        return read_npz(path)
    except DataError as error:
        raise CheckpointError(str(error)) from error


def _read_safetensors(path: Path, content: bytes) -> dict[str, Host]:
    try:
        import safetensors
    except ImportError as error:
        raise ImportError("reading safetensors needs safetensors; install the extra train") from error
    deserialize: Any = safetensors.deserialize  # without types
    try:
        entries = deserialize(content)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path}: expected a safetensors or npz file, got neither: {error}") from error
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    if header.get("__metadata__", {}).get("format", "").startswith(FORMAT):
        raise CheckpointError(f"{path}: a network of bnengine; read it with bnengine.load")
    return {name: _tensor(path, name, **entry) for name, entry in entries}


def _tensor(path: Path, name: str, *, dtype: str, shape: list[int], data: Any) -> Host:
    if dtype not in DTYPES:
        raise CheckpointError(f"{path}: {name}: expected one of the dtypes {', '.join(DTYPES)}, got {dtype}")
    array = np.frombuffer(data, DTYPES[dtype], math.prod(shape)).reshape(shape)
    return (array.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else array


def _name(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"file_or_mapping: expected names that are text, got {shown(name)}")
    return name


def _host(name: str, value: Any) -> Host:
    """The array on the host: floats, or whole numbers."""
    if str(getattr(value, "dtype", "")) == "torch.bfloat16":
        value = value.float()  # NumPy has no such dtype
    try:
        array = as_numpy(value)
    except Exception as error:
        raise TypeError(f"{name}: expected an array of numbers, got {shown(value)}: {error}") from error
    if array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name}: expected an array of numbers, got {shown(value)}")
    return array
