"""Networks as safetensors, with a checksum over all that they hold."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import files, trees
from ._typing import BackendName, Tree
from .arguments import instance, quantity, shown
from .backends import Backend, as_backend, as_numpy
from .layers import Layer
from .networks import LAYERS, Sequential

FORMAT, VERSION = "bnengine network", 1
"""In the header as one: "bnengine network 1". Files of later versions are refused."""


class CheckpointError(ValueError):
    """A file that is not what it should be; the message names it."""


class Loaded(NamedTuple):
    """A network from a file."""

    net: Sequential
    params: Tree
    state: Tree
    opt_state: Tree
    """Empty where it was not saved."""
    metadata: dict[str, Any]
    dtype: str
    """Of the parameters in the file, which `load` brings to the backend's."""

    def __repr__(self) -> str:
        words = [quantity(len(self.net.layers), "layer"), f"{self.net.parameters:,} parameters of {self.dtype}"]
        words += ["with the optimiser's state"] if self.opt_state else []
        return f"Loaded({', '.join([*words, *self.metadata])})"


def save(
    path: str | os.PathLike[str],
    net: Sequential,
    params: Tree,
    state: Tree,
    *,
    opt_state: Tree | None = None,
    metadata: dict[str, Any] | None = None,
) -> None:
    """Write a network as safetensors: arrays by name ("1.gamma"), the layers and metadata beside them.

    Parameters
    ----------
    path : path
        Replaced only once the new file is complete on the disk.
    net, params, state
        What `load` gives back, from any backend.
    opt_state : dict, optional
        State of the optimiser, to go on training.
    metadata : dict, optional
        Anything that JSON can hold.

    Examples
    --------
    >>> import tempfile, pathlib, bnengine as bn
    >>> net = bn.mlp([4, 8, 3])
    >>> params, state = net.init(0, backend=bn.backend("numpy"))
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
    >>> bn.save(path, net, params, state, metadata={"classes": ["a", "b", "c"]})
    >>> loaded = bn.load(path)
    >>> loaded.net == net, loaded.metadata, bool((loaded.params["1"]["gamma"] == 1).all())
    (True, {'classes': ['a', 'b', 'c']}, True)
    """
    target = _path(path)
    if target.is_dir():
        raise IsADirectoryError(f"path: expected a file to write, {target} is a directory")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"path: no directory {target.parent} to write {target.name} into; make it first")
    files.write(path, packed(net, params, state, opt_state=opt_state, metadata=metadata))


def packed(
    net: Sequential, params: Tree, state: Tree, *, opt_state: Tree | None = None, metadata: dict[str, Any] | None = None
) -> bytes:
    """What `save` writes."""
    instance("net", net, Sequential, "a Sequential")
    for argument, tree in (("params", params), ("state", state), ("opt_state", opt_state), ("metadata", metadata)):
        instance(argument, {} if tree is None and argument in ("opt_state", "metadata") else tree, dict, "a dict")
    arrays = {**trees.flatten(params), **trees.flatten(state)}
    shapes = {**net.shapes.params, **net.shapes.state}
    if arrays.keys() != shapes.keys():
        raise ValueError(f"params, state: expected the arrays {', '.join(shapes)}, got {', '.join(arrays)}")
    trees.check("params", params, net.shapes.params)
    trees.check("state", state, net.shapes.state)
    check_spec(net)
    arrays |= {f"optimizer.{name}": leaf for name, leaf in trees.flatten(opt_state or {}).items()}
    for leaf in arrays.values():
        if isinstance(trees.shape_of(leaf), str):
            raise TypeError(f"opt_state: expected arrays and counts, got {trees.shape_of(leaf)}")
    # safetensors writes strided and Fortran-ordered arrays wrongly without a word.
    contiguous = {name: np.ascontiguousarray(as_numpy(leaf)).reshape(np.shape(leaf)) for name, leaf in arrays.items()}
    header = {"network": json.dumps(to_spec(net)), "metadata": _json("metadata", metadata or {})}
    header |= {"format": f"{FORMAT} {VERSION}", "sha256": _digest(header, contiguous)}
    content: bytes = _safetensors().save(contiguous, header)
    return content


def load(
    path: str | os.PathLike[str], *, backend: Backend | BackendName | None = None, layers: Sequence[type[Layer]] = ()
) -> Loaded:
    """A network that `save` wrote.

    Parameters
    ----------
    path : path
    backend : Backend or str, optional
        Where its arrays go; NumPy float32 by default.
    layers : sequence of classes
        Layers of your own that the network has; a file with an unknown layer is refused by its name.

    Returns
    -------
    Loaded
        `(net, params, state, opt_state, metadata, dtype)`.

    Raises
    ------
    CheckpointError
        Where the file is not a network's, is damaged, was written by a later version, or its arrays do not
        fit its layers.
    """
    backend = as_backend(backend)
    header, arrays = _read(_path(path))
    try:
        net, metadata = from_spec(json.loads(header["network"]), layers), json.loads(header["metadata"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its description of the network cannot be read: {error}") from error
    optimizer = {name: array for name, array in arrays.items() if name.startswith("optimizer.")}
    own = {name: array for name, array in arrays.items() if name not in optimizer}
    _fits(path, net, own)
    # In the order of the layers, not of the file: sums over leaves round differently in another order.
    params, state = ({name: _leaf(own[name], backend) for name in names} for names in net.shapes)
    opt_state = {name.removeprefix("optimizer."): _leaf(array, backend) for name, array in optimizer.items()}
    dtype = next((str(own[name].dtype) for name in params), "float32")
    return Loaded(net, trees.unflatten(params), trees.unflatten(state), trees.unflatten(opt_state), metadata, dtype)


def _path(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike) or "\0" in os.fspath(path):
        raise TypeError(f"path: expected a path, got {shown(path)}")
    return Path(path)


def _json(name: str, value: Any) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"{name}: expected what JSON can hold: {error}") from error


def _read(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray[Any, Any]]]:
    safetensors = _safetensors()
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
        arrays = safetensors.load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file: {error}") from error
    version = re.fullmatch(rf"{FORMAT} ([0-9]{{1,9}})", header.get("format", ""))
    if version is None:
        raise CheckpointError(f"{path}: expected a network's format, got {header.get('format')!r}")
    if int(version[1]) > VERSION:
        raise CheckpointError(
            f"{path}: its format {version[1]} is newer than {VERSION}, which this bnengine reads; update it"
        )
    if header.get("sha256") != _digest(header, arrays):
        raise CheckpointError(f"{path}: damaged: its content does not have its checksum")
    return header, arrays


def _digest(header: dict[str, str], arrays: dict[str, np.ndarray[Any, Any]]) -> str:
    """SHA-256 over the layers, the metadata and every array with its name, dtype and shape."""
    digest = hashlib.sha256(json.dumps([header.get("network"), header.get("metadata")]).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(json.dumps([name, str(array.dtype), array.shape]).encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _fits(path: str | os.PathLike[str], net: Sequential, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
    """Refuse arrays whose names or shapes are not those of the network."""
    expected = {**net.shapes.params, **net.shapes.state}
    found = {name: array.shape for name, array in arrays.items()}
    if expected != found:
        different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        name = different[0]
        raise CheckpointError(
            f"{path}: its arrays do not fit its layers: {name} should have shape {expected.get(name)}, "
            f"it has {found.get(name)}"
        )


def _leaf(array: np.ndarray[Any, Any], backend: Backend) -> Any:
    return int(array) if array.dtype.kind in "iu" and array.ndim == 0 else backend.asarray(array)


def _safetensors() -> Any:
    try:
        from safetensors import numpy
    except ImportError as error:
        raise ImportError("saving and loading networks needs safetensors; install the extra train") from error
    return numpy


# ---- networks as plain data


def to_spec(net: Sequential) -> list[dict[str, Any]]:
    """The network as plain data, for a file."""
    return [_layer_spec(layer) for layer in net.layers]


def _layer_spec(layer: Any) -> dict[str, Any]:
    kind = type(layer).__name__
    if LAYERS.get(kind, type(layer)) is not type(layer):
        raise ValueError(f"net: expected another name for a layer of your own, {kind} is one of bnengine's")
    names = [field.name for field in dataclasses.fields(layer)] if dataclasses.is_dataclass(layer) else vars(layer)
    settings = {name: getattr(layer, name) for name in names}
    return {"layer": kind, **{name: _plain(value) for name, value in settings.items()}}


def _plain(value: Any) -> Any:
    """A setting as JSON has it."""
    if isinstance(value, Layer):
        return _layer_spec(value)
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def check_spec(net: Sequential) -> None:
    """Refuse a network that would not come back from its plain data: better now than when it is needed."""
    kinds = tuple({type(layer) for _, layer in net.named()} - set(LAYERS.values()))
    spec = to_spec(net)
    try:
        back = to_spec(from_spec(json.loads(json.dumps(spec)), kinds))
    except (TypeError, ValueError) as error:
        raise TypeError(f"net: a layer's settings cannot be written as JSON and read again: {error}") from error
    if back != spec:
        raise TypeError("net: a layer's settings change when they are written as JSON and read again")


def from_spec(spec: list[dict[str, Any]], layers: Sequence[type[Layer]] = ()) -> Sequential:
    """The network of a `to_spec`; `layers` are the classes of layers that are not bnengine's own."""
    for kind in layers:
        if not issubclass(kind, Layer):
            raise TypeError(f"layers: expected classes derived from bnengine.Layer, got {shown(kind)}")
    kinds = {kind.__name__: kind for kind in layers} | LAYERS
    return Sequential(tuple(_from_entry(entry, kinds) for entry in spec))


def _from_entry(entry: dict[str, Any], kinds: dict[str, type[Layer]]) -> Layer:
    settings = dict(entry)
    name = settings.pop("layer", "")
    if name not in kinds:
        raise ValueError(
            f"layers: expected {', '.join(kinds)}, got {shown(entry)}; hand the class of a layer of your own to load: "
            f"load(path, layers=({name or 'Mine'},))"
        )
    return kinds[name](**{key: _from_plain(value, kinds) for key, value in settings.items()})


def _from_plain(value: Any, kinds: dict[str, type[Layer]]) -> Any:
    if isinstance(value, dict) and "layer" in value:
        return _from_entry(value, kinds)
    return tuple(_from_plain(item, kinds) for item in value) if isinstance(value, list) else value
