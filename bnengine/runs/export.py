"""A finished run as a file for other libraries."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import files, trees
from .._typing import Tree
from ..arguments import ConfigError
from ..checkpoints import Loaded
from ..exchange import numpy_file, to_onnx, to_torch
from . import run_directory
from .predict import encoding_of, load_run


class Kind(NamedTuple):
    """A file that a run can become."""

    help: str
    write: Callable[[Loaded, bool], tuple[bytes, str]]
    """(the file's content, what to print) of a network; with its BatchNorms kept where that is asked for."""
    keeps_norms: bool = False
    """Whether it can be asked for."""
    encodes: bool = False
    """Whether it holds what becomes of text and of missing values."""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The arguments of `bnengine export`."""
    command.add_argument("directory", metavar="RUN", help="directory of the run")
    chosen = command.add_mutually_exclusive_group(required=True)
    for name, kind in KINDS.items():
        chosen.add_argument(f"--{name}", metavar="FILE", help=kind.help)
    command.add_argument("--keep-norms", action="store_true", help="with --onnx: BatchNormalization nodes, not folded")


def export_run(given: dict[str, Any]) -> str:
    """Write the file that was asked for; what to print."""
    name = next(name for name in KINDS if name in given)
    kind, out, run = KINDS[name], given[name], Path(given["directory"])
    keep_norms = "keep_norms" in given
    if keep_norms and not kind.keeps_norms:
        raise ConfigError(f"keep_norms: says how --onnx is written; --{name} has no such choice")
    path = files.writable(name, out)
    if path.resolve() in [(run / file).resolve() for file in run_directory.FILES]:
        raise ConfigError(f"{name}: {out} is a file of the run; choose another")
    _, loaded, _ = load_run(str(run), "numpy", None)
    made = [c.name for c in encoding_of(loaded).columns if c.fill is not None or c.features != [c.name]]
    if made and not kind.encodes:
        listed = ", ".join(made[:5]) + (f" and {len(made) - 5} more" if len(made) > 5 else "")
        raise ConfigError(
            f"{name}: cannot hold how the run encodes text and fills missing values: {listed}; --numpy can"
        )
    content, words = kind.write(loaded, keep_norms)
    files.write(path, content)
    return words.replace("FILE", out)


def _numpy(loaded: Loaded, keep_norms: bool) -> tuple[bytes, str]:  # noqa: ARG001
    encoding = encoding_of(loaded)
    arrays = numpy_file.packed(
        *(loaded.net, loaded.params, loaded.state),
        classes=_classes(loaded),
        target=_target(loaded),
        columns=loaded.metadata["columns"],
        encoding=encoding,
    )
    results = "labels, probabilities" if _classes(loaded) else "values"
    rows = "encode(model, rows)" if encoding.columns else "rows"
    usage = f'\n\n# model = load("FILE")\n# {results} = predict(model, {rows})'
    return numpy_file.to_bytes(arrays), numpy_file.loader(arrays).rstrip("\n") + usage


def _torch(loaded: Loaded, keep_norms: bool) -> tuple[bytes, str]:  # noqa: ARG001
    from safetensors.numpy import save

    params = loaded.params if _classes(loaded) else _in_units(loaded)
    header = {
        "format": "pt",
        "classes": json.dumps(_classes(loaded)),
        "columns": json.dumps(loaded.metadata["columns"]),
    }
    content: bytes = save(to_torch.to_torch(loaded.net, params, loaded.state), header)
    load = 'net.load_state_dict(safetensors.torch.load_file("FILE"))\nnet.eval()'
    return content, f"import safetensors.torch\n{to_torch.torch_code(loaded.net)}{load}"


def _in_units(loaded: Loaded) -> Tree:
    """The parameters with the scale of the targets in the last Linear, in which the network of a run ends."""
    (mean, std), last = _target(loaded), str(len(loaded.net.layers) - 1)
    wide = trees.map_leaves(lambda leaf: np.asarray(leaf, np.float64) * std, loaded.params[last])
    wide["bias"] += mean
    dtype = loaded.params[last]["weight"].dtype
    return {**loaded.params, last: trees.map_leaves(lambda leaf: leaf.astype(dtype), wide)}


def _onnx(loaded: Loaded, keep_norms: bool) -> tuple[bytes, str]:
    content = to_onnx.packed(
        *(loaded.net, loaded.params, loaded.state),
        classes=_classes(loaded),
        target=_target(loaded),
        columns=loaded.metadata["columns"],
        keep_norms=keep_norms,
    )
    outputs = f"label and probabilities (rows, {loaded.net.outputs})" if _classes(loaded) else "prediction (rows, 1)"
    given = f"input x (rows, {loaded.net.inputs}) of {loaded.dtype}"
    return content, f"FILE: opset {to_onnx.OPSET}, {given}, output {outputs}"


def _classes(loaded: Loaded) -> list[str]:
    """Names of the classes; none of a regression."""
    return list(loaded.metadata["classes"]) if loaded.metadata["task"] == "classification" else []


def _target(loaded: Loaded) -> tuple[float, float]:
    return loaded.metadata["target_mean"], loaded.metadata["target_std"]


KINDS = {
    "numpy": Kind("npz file for NumPy alone; prints the Python that runs it", _numpy, encodes=True),
    "torch": Kind("safetensors file for PyTorch; prints the module", _torch),
    "onnx": Kind("ONNX model (the extra onnx)", _onnx, keeps_norms=True),
}
"""By the names of their options."""
