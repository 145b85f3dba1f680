"""Networks from arrays by the names that PyTorch gives them, without PyTorch."""

from __future__ import annotations

import dataclasses
import itertools
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._typing import BackendName, Tree
from ..arguments import instance, one_of, shown
from ..backends import Backend, as_backend
from ..functional import ACTIVATIONS
from ..functional.activations import ActivationName
from ..layer import Layer
from ..layers import Activation, BatchNorm, Dropout, Linear, Standardize
from ..networks import Sequential
from ..trees import unflatten
from .steps import Host
from .to_torch import NORM
from .weight_files import Found, read

Arrays = dict[str, Host]


@dataclass(frozen=True)
class _Module:
    """What one module of PyTorch's has kept."""

    name: str
    """Without the dot behind it: "fc1", "0", "module.net.3"; empty for a state dict of one module."""
    layer: Linear | BatchNorm
    affine: bool
    arrays: Arrays
    """By our names, a weight transposed."""

    def key(self, name: str) -> str:
        return f"{self.name}.{name}" if self.name else name


def from_torch(
    file_or_mapping: str | os.PathLike[str] | Mapping[str, Any],
    net: Sequential | None = None,
    *,
    activation: ActivationName | None = None,
    modules: Sequence[str] | None = None,
    backend: Backend | BackendName | None = None,
) -> tuple[Sequential, Tree, Tree]:
    """A network from a state dict of PyTorch's Linear and BatchNorm1d modules; PyTorch is not needed.

    Parameters
    ----------
    file_or_mapping : path or mapping
        A safetensors or npz file, or arrays by name, such as `model.state_dict()`: float16, bfloat16, float32 or
        float64. Prefixes such as DataParallel's "module." are no matter.
    net : Sequential, optional
        What the arrays are for: its Linear, BatchNorm and Standardize take them in their order. A state dict says
        nothing of activations, skips, eps and momentum; without `net` these are PyTorch's defaults, there are no
        skips, and activations stand where the numbers of a torch.nn.Sequential leave a gap, or else behind each
        BatchNorm and each Linear that has none, the last module apart.
    activation : str, optional
        Which activation, without `net`: ReLU by default, with a warning that says where it was put.
    modules : sequence of str, optional
        Names of the modules in the order of a pass. Needed for safetensors files, which keep no order, unless the
        names are numbers; and to take a part of a larger model.
    backend : Backend or str, optional
        Where the arrays go; NumPy float32 by default.

    Returns
    -------
    net, params, state
        A bias in front of a BatchNorm is subtracted from the running mean, which gives the same outputs.

    Raises
    ------
    ValueError
        Naming the array that is missing, of another shape, or of a module that is neither.
    CheckpointError
        A ValueError, for a file that is neither safetensors nor npz.

    Notes
    -----
    A BatchNorm1d without learned scale has gamma 1 and beta 0. Where a count of batches is missing, as PyTorch
    before 0.4.1 left it out, it is 1.

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> arrays = {"0.weight": np.ones((8, 4)), "0.bias": np.ones(8)}
    >>> arrays |= {"1.weight": np.ones(8), "1.bias": np.zeros(8)}
    >>> arrays |= {"1.running_mean": np.zeros(8), "1.running_var": np.ones(8), "3.weight": np.ones((3, 8))}
    >>> net, params, state = bn.from_torch(arrays, activation="silu")
    >>> net
    Sequential((Linear(4, 8, bias=False), BatchNorm(8), Activation('silu'), Linear(8, 3, bias=False)))
    >>> float(state["1"]["mean"][0])  # 0 minus the bias
    -1.0
    """
    found = read(file_or_mapping)
    taken = _modules(found, modules)
    if net is None:
        if activation is not None:
            one_of("activation", activation, ACTIVATIONS)
        net = _network(taken, activation)
    elif activation is not None:
        raise ValueError("activation: says what a network has whose layers are not known; net is given")
    params, state = _filled(net, taken, as_backend(backend))
    return net, params, state


# ---- what the names say


def _modules(found: Found, wanted: Sequence[str] | None) -> list[_Module]:
    """The modules in the order of a pass."""
    groups: dict[str, Arrays] = {}
    for key, array in found.arrays.items():
        prefix, _, name = key.rpartition(".")
        groups.setdefault(prefix, {})[name] = array
    if wanted is not None:
        for name in wanted:
            if name not in groups:
                raise ValueError(f"modules: expected names of {found.where}, {', '.join(groups)}, got {shown(name)}")
        groups = {name: groups[name] for name in wanted}
    elif not groups:
        raise ValueError(f"{found.where}: expected arrays of Linear and BatchNorm1d modules, got none")
    else:
        groups = _in_order(found, groups)
    return [_module(name, arrays) for name, arrays in groups.items()]


def _in_order(found: Found, groups: dict[str, Arrays]) -> dict[str, Arrays]:
    places = {name: _place(name, list(groups)) for name in groups}
    if all(place is not None for place in places.values()):
        return {name: groups[name] for name in sorted(groups, key=lambda name: places[name] or ())}
    if not found.ordered:
        raise ValueError(
            f"{found.where}: a safetensors file keeps no order of its modules {', '.join(groups)}; "
            "hand their names in the order of a pass: from_torch(..., modules=[...])"
        )
    return groups


def _place(name: str, names: Sequence[str]) -> tuple[int, ...] | None:
    """Numbers of the module behind what all names begin with: (3,) of "module.net.3"; None where it is named."""
    parents = [other.split(".")[:-1] for other in names]
    common = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*parents, strict=False))
    own = name.split(".")[len(list(common)) :]
    return tuple(map(int, own)) if all(part.isdecimal() for part in own) else None


def _module(name: str, arrays: Arrays) -> _Module:
    weight = arrays.get("weight")
    if "running_mean" in arrays or "running_var" in arrays:
        return _norm(name, arrays)
    where = f"{name}.weight" if name else "weight"
    got = ", ".join(f"{key} {array.shape}" for key, array in arrays.items())
    if weight is None or weight.ndim != 2 or set(arrays) - {"weight", "bias"}:
        hint = ""
        if weight is not None and weight.ndim == 1:
            hint = "; a BatchNorm1d without running statistics, or another norm, has no inference here"
        raise ValueError(
            f"{where}: expected a Linear, weight of shape (outputs, inputs) and bias, or a BatchNorm1d with "
            f"running_mean and running_var, got {got}{hint}"
        )
    outputs, inputs = weight.shape
    own = {"weight": weight.T}
    if "bias" in arrays:
        own["bias"] = _shaped(name, "bias", arrays["bias"], (outputs,))
    return _Module(name, Linear(inputs, outputs, bias="bias" in arrays), True, own)


def _norm(name: str, arrays: Arrays) -> _Module:
    where = f"{name}." if name else ""
    affine = "weight" in arrays or "bias" in arrays
    needed = ["running_mean", "running_var", *(["weight", "bias"] if affine else [])]
    for key in needed:
        if key not in arrays:
            raise ValueError(f"{where}{key}: expected an array of a BatchNorm1d, got only {', '.join(arrays)}")
    for key in arrays:
        if key not in NORM:
            raise ValueError(f"{where}{key}: expected only {', '.join(NORM)} of a BatchNorm1d, got it too")
    features = arrays["running_mean"].size
    own = {NORM[key]: _shaped(name, key, arrays[key], (features,)) for key in needed}
    count = arrays.get("num_batches_tracked", np.asarray(1))
    own["batches"] = _shaped(name, "num_batches_tracked", count, ())
    if not affine:
        own |= {"gamma": np.ones(features), "beta": np.zeros(features)}
    return _Module(name, BatchNorm(features), affine, own)


def _shaped(name: str, key: str, array: Host, shape: tuple[int, ...]) -> Host:
    if array.shape != shape:
        raise ValueError(f"{name}.{key}: expected shape {shape}, got {array.shape}")
    return array


# ---- a network for them


def _network(taken: list[_Module], activation: ActivationName | None) -> Sequential:
    """The layers of the modules, with activations between."""
    layers: list[Layer] = []
    followed = _followed(taken)
    for module, after, activated in zip(taken, [*taken[1:], None], followed, strict=True):
        layer: Layer = module.layer
        _check_width(layers, module)
        if isinstance(layer, Linear) and after is not None and isinstance(after.layer, BatchNorm) and not activated:
            layer = dataclasses.replace(layer, bias=False)
        if activated and isinstance(layer, BatchNorm) and activation in (None, "relu"):
            layers.append(dataclasses.replace(layer, activation="relu"))
        else:
            layers += [layer, Activation(activation or "relu")] if activated else [layer]
    if activation is None and any(followed):
        names = ", ".join(module.name for module, activated in zip(taken, followed, strict=True) if activated)
        warnings.warn(
            f"activation: a state dict does not say it; relu was put behind {names}. "
            "Hand net, or activation='relu' where that is right",
            stacklevel=3,
        )
    return Sequential(tuple(layers))


def _followed(taken: list[_Module]) -> list[bool]:
    """Whether an activation stands behind each module: where its number leaves a gap, or behind a whole block."""
    names = [module.name for module in taken]
    places = [_place(name, names) for name in names]
    pairs = zip(itertools.pairwise(places), itertools.pairwise(taken), strict=True)
    if all(place is not None and len(place) == 1 for place in places):
        return [*((after or ())[0] > (place or ())[0] + 1 for (place, after), _ in pairs), False]
    kinds = ((isinstance(this.layer, Linear), isinstance(after.layer, BatchNorm)) for _, (this, after) in pairs)
    return [*(not (linear and norm) for linear, norm in kinds), False]


def _check_width(layers: list[Layer], module: _Module) -> None:
    width = next((layer.gives for layer in reversed(layers) if layer.gives), module.layer.takes)
    if module.layer.takes != width:
        key = module.key("weight" if isinstance(module.layer, Linear) else "running_mean")
        raise ValueError(f"{key}: expected {width} features, as the module before it gives, got {module.layer.takes}")


def _filled(net: Sequential, taken: list[_Module], backend: Backend) -> tuple[Tree, Tree]:
    """Parameters and state of the network from the modules."""
    instance("net", net, Sequential, "None or a Sequential")
    layers = [(name, layer) for name, layer in net.named() if type(layer) is not Dropout]
    wanted = [(name, layer) for name, layer in layers if layer.shapes.params or layer.shapes.state]
    if len(wanted) != len(taken):
        words = ", ".join(f"{name} ({layer})" for name, layer in wanted)
        names = ", ".join(module.name or "weight" for module in taken)
        raise ValueError(f"net: its layers {words} take {len(wanted)} modules, got {len(taken)}: {names}")
    normed = {
        name
        for (name, _), (after, layer) in itertools.pairwise(layers)
        if isinstance(layer, BatchNorm) and name.rpartition(".")[0] == after.rpartition(".")[0]
    }
    flat: dict[str, Any] = {}
    bias: Host | float = 0.0
    for (name, layer), module in zip(wanted, taken, strict=True):
        arrays = _for_layer(name, layer, module)
        if isinstance(layer, BatchNorm):
            arrays["mean"] = arrays["mean"] - np.asarray(bias, np.float64)
        bias = arrays.pop("bias") if isinstance(layer, Linear) and not layer.bias and "bias" in arrays else 0.0
        if np.ndim(bias) and name not in normed:
            raise ValueError(f"{module.key('bias')}: expected none for layer {name}, {layer}, got {module.layer}")
        flat |= {f"{name}.{key}": array for key, array in arrays.items()}
    shapes = net.shapes
    params = {name: backend.asarray(flat[name].astype(np.float64)) for name in shapes.params}
    state = {name: _state(flat[name], backend) for name in shapes.state}
    return unflatten(params), unflatten(state)


def _state(array: Host, backend: Backend) -> Any:
    return backend.asarray(array.astype(np.float64)) if array.ndim else int(array)


def _for_layer(name: str, layer: Layer, module: _Module) -> Arrays:
    """The arrays of a module, refused where they are not this layer's."""
    got, what = module.layer, f"layer {name}, {layer}"
    kind = Linear if isinstance(layer, Linear) else BatchNorm
    if type(layer) not in (Linear, BatchNorm, Standardize) or type(got) is not kind:
        raise ValueError(f"{module.key('weight')}: expected the arrays of {what}, got those of a {got!r}")
    if (layer.takes, layer.gives) != (got.takes, got.gives):
        key = module.key("weight" if kind is Linear else "running_mean")
        expected, found = (
            (kind.gives, kind.takes) if isinstance(kind, Linear) else (kind.takes,) for kind in (layer, got)
        )
        raise ValueError(f"{key}: expected shape {expected} for {what}, got {found}")
    if isinstance(layer, Linear) and layer.bias and "bias" not in module.arrays:
        raise ValueError(f"{module.key('bias')}: expected shape ({layer.outputs},) for {what}, got none")
    if isinstance(layer, Standardize):
        if module.affine:
            raise ValueError(f"{module.key('weight')}: expected none for {what}, got {module.arrays['gamma'].shape}")
        return {key: module.arrays[key] for key in ("mean", "var")}
    return dict(module.arrays)
