"""Files of a run: networks as safetensors, written beside and renamed, so that a crash leaves the old file."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import trees
from ._typing import Tree
from .backends import Backend, as_backend, as_numpy
from .layers import PARAMETERS, Sequential, from_spec, to_spec

FORMAT = "bnengine network 1"
RUN_FILES = (
    "config.toml",
    "metrics.jsonl",
    "summary.json",
    "model.safetensors",
    "checkpoint.safetensors",
    "curves.png",
)


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
    arrays = {**trees.flatten(params), **trees.flatten(state)}
    if arrays.keys() != net.shapes().keys():
        raise ValueError(f"params, state: expected the arrays {', '.join(net.shapes())}, got {', '.join(arrays)}")
    arrays |= {f"optimizer.{name}": leaf for name, leaf in trees.flatten(opt_state or {}).items()}
    # safetensors writes strided and Fortran-ordered arrays wrongly without a word.
    contiguous = {name: np.ascontiguousarray(as_numpy(leaf)).reshape(np.shape(leaf)) for name, leaf in arrays.items()}
    header = {"format": FORMAT, "network": json.dumps(to_spec(net)), "metadata": json.dumps(metadata or {})}
    write(path, _safetensors().save(contiguous, header))


def load(path: str | os.PathLike[str], *, backend: Backend | str | None = None) -> Loaded:
    """A network that `save` wrote.

    Parameters
    ----------
    path : path
    backend : Backend or str, optional
        Where its arrays go; NumPy float32 by default.

    Returns
    -------
    Loaded
        `(net, params, state, opt_state, metadata)`.

    Raises
    ------
    CheckpointError
        Where the file is not a network's, is damaged, or its arrays do not fit its layers.
    """
    backend = as_backend(backend)
    header, arrays = _read(Path(path))
    try:
        net, metadata = from_spec(json.loads(header["network"])), json.loads(header["metadata"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its description of the network cannot be read: {error}") from error
    optimizer = {name: array for name, array in arrays.items() if name.startswith("optimizer.")}
    own = {name: array for name, array in arrays.items() if name not in optimizer}
    _fits(path, net, own)
    # In the order of the layers, not of the file: sums over leaves round differently in another order.
    leaves = {name: _leaf(own[name], backend) for name in net.shapes()}
    params = {name: leaf for name, leaf in leaves.items() if name.rpartition(".")[2] in PARAMETERS}
    state = {name: leaf for name, leaf in leaves.items() if name not in params}
    opt_state = {name.removeprefix("optimizer."): _leaf(array, backend) for name, array in optimizer.items()}
    return Loaded(net, trees.unflatten(params), trees.unflatten(state), trees.unflatten(opt_state), metadata)


def write(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Replace a file by new content that is complete on the disk first."""
    raw = content.encode() if isinstance(content, str) else content
    target = Path(path).resolve()  # a link stays, what it points to is replaced
    try:
        if target.exists() and not target.is_file():  # a device or a pipe is written to; a directory refuses
            target.write_bytes(raw)
        else:
            _replace(target, raw)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _replace(path: Path, content: bytes) -> None:
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(beside).chmod(0o666 & ~_umask())  # mkstemp makes a file that only its owner can read
        Path(beside).replace(path)
    except BaseException:
        Path(beside).unlink()
        raise


def new_run(out: str | None, name: str, *, overwrite: bool, resume: bool) -> Path:
    """The directory of a run: a new one under runs/, or the one asked for.

    Raises
    ------
    FileExistsError
        Where it exists and neither `resume` nor `overwrite` was asked for, or holds what is no run's.
    """
    if out is None:
        return _numbered(Path("runs"), name)
    path = Path(out)
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"out: {path} is a file, expected a directory")
    found = sorted(entry.name for entry in path.iterdir()) if path.exists() else []
    if found and not overwrite and not resume:
        raise FileExistsError(f"out: {path} exists; --resume goes on with it, --overwrite starts anew in it")
    if found and "config.toml" not in found:
        raise FileExistsError(f"out: {path} holds {found[0]} and no config.toml, so it is no run; choose another")
    path.mkdir(parents=True, exist_ok=True)
    if overwrite:
        for file in RUN_FILES:
            (path / file).unlink(missing_ok=True)
    return path


def _numbered(parent: Path, name: str) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or "run"
    number = 1
    while True:
        path = parent / f"{safe}-{number:03d}"
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path


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
    if header.get("format") != FORMAT:
        raise CheckpointError(f"{path}: expected format {FORMAT!r}, got {header.get('format')!r}")
    return header, arrays


def _fits(path: str | os.PathLike[str], net: Sequential, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
    """Refuse arrays whose names or shapes are not those of the network."""
    expected = net.shapes()
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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
