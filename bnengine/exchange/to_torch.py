"""A network's arrays by the names that PyTorch gives them, without PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .._typing import Tree
from ..arguments import instance
from ..backends import as_numpy
from ..layer import Layer
from ..layers import Activation, BatchNorm, Dropout, Linear, Standardize
from ..networks import Residual, Sequential
from ..trees import check
from .steps import Host

MODULES = {
    "relu": "ReLU()",
    "leaky_relu": "LeakyReLU(0.01)",
    "gelu": 'GELU(approximate="tanh")',
    "silu": "SiLU()",
    "elu": "ELU()",
    "selu": "SELU()",
    "softplus": "Softplus()",
    "sigmoid": "Sigmoid()",
    "tanh": "Tanh()",
    "identity": "Identity()",
}

NORM = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "mean",
    "running_var": "var",
    "num_batches_tracked": "batches",
}
"""PyTorch's names of what a BatchNorm learns and keeps, and ours."""

RESIDUAL = """class Residual(torch.nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


"""


def to_torch(net: Sequential, params: Tree, state: Tree) -> dict[str, Host]:
    """The network's arrays under the names of the torch.nn.Sequential of the same layers, for its `load_state_dict`.

    A module stands for each layer, and one of its own for the ReLU that is fused with a BatchNorm. A Linear's weight
    is the transpose of ours. A Standardize is a BatchNorm1d(features, eps=0, affine=False). A Residual is a Sequential
    whose `forward` gives x + super().forward(x).

    Parameters
    ----------
    net, params, state
        Arrays of any library.

    Returns
    -------
    dict
        Arrays of NumPy in the order of the modules, in the dtype that they have here; counts are int64.
        `torch.from_numpy` makes tensors of them, `safetensors.numpy.save_file` a file.

    Raises
    ------
    ValueError
        Naming a layer of your own, for which PyTorch has no name.

    Examples
    --------
    >>> import bnengine as bn
    >>> net = bn.mlp([4, 8, 3])
    >>> arrays = bn.to_torch(net, *net.init(0, backend="numpy"))
    >>> arrays["0.weight"].shape, arrays["1.running_mean"].shape, list(arrays)[-2:]
    ((8, 4), (8,), ['3.weight', '3.bias'])
    """
    instance("net", net, Sequential, "a Sequential")
    check("params", params, net.shapes.params)
    check("state", state, net.shapes.state)
    return dict(_arrays(net, params, state, ""))


def _arrays(net: Sequential, params: Tree, state: Tree, prefix: str) -> Iterator[tuple[str, Host]]:
    place = 0
    for i, layer in enumerate(net.layers):
        name, learned, kept = f"{prefix}{place}.", params.get(str(i), {}), state.get(str(i), {})
        _code(layer)  # refuses what has no name there
        if isinstance(layer, Sequential):
            yield from _arrays(layer, learned, kept, name)
        elif isinstance(layer, Linear):
            yield from ((name + key, np.ascontiguousarray(as_numpy(leaf).T)) for key, leaf in learned.items())
        elif isinstance(layer, BatchNorm):
            both = {**learned, **kept}
            yield from ((name + key, _kept(both[ours])) for key, ours in NORM.items())
        elif isinstance(layer, Standardize):
            counted = {"mean": kept["mean"], "var": kept["var"], "batches": 1}
            yield from ((name + key, _kept(counted[ours])) for key, ours in NORM.items() if ours in counted)
        place += 1 if _fused(layer) is None else 2


def _kept(leaf: object) -> Host:
    array = as_numpy(leaf)
    return array.astype(np.int64) if array.ndim == 0 else array


def _fused(layer: Layer) -> str | None:
    return layer.activation if isinstance(layer, BatchNorm) else None


# ---- the modules


def torch_code(net: Sequential) -> str:
    """The Python that makes the torch.nn.Sequential which `to_torch` gives the arrays of."""
    skips = any(isinstance(layer, Residual) for layer in _all(net))
    return f"import torch\n\n\n{RESIDUAL if skips else ''}net = {_code(net)}\n"


def _all(net: Sequential) -> Iterator[Layer]:
    for layer in net.layers:
        yield layer
        if isinstance(layer, Sequential):
            yield from _all(layer)


def _code(layer: Layer, indent: str = "") -> str:
    """The module for a layer; for one with a fused ReLU both, separated by a comma."""
    inner = f"{indent}    "
    if isinstance(layer, Sequential):
        lines = "".join(f"{inner}{_code(part, inner)},\n" for part in layer.layers)
        return f"{'Residual' if isinstance(layer, Residual) else 'torch.nn.Sequential'}(\n{lines}{indent})"
    if isinstance(layer, Linear):
        return f"torch.nn.Linear({layer.inputs}, {layer.outputs}{'' if layer.bias else ', bias=False'})"
    if isinstance(layer, BatchNorm):
        settings = f"{layer.features}, eps={layer.eps!r}, momentum={layer.momentum!r}"
        after = f",\n{indent}torch.nn.{MODULES[layer.activation]}" if layer.activation else ""
        return f"torch.nn.BatchNorm1d({settings}){after}"
    if isinstance(layer, Standardize):
        return f"torch.nn.BatchNorm1d({layer.features}, eps=0, affine=False)"
    if isinstance(layer, Dropout):
        return f"torch.nn.Dropout({layer.rate!r})"
    if isinstance(layer, Activation):
        return f"torch.nn.{MODULES[layer.name]}"
    raise ValueError(f"net: expected layers that PyTorch has too, got {layer!r}, a layer of your own")
