"""Normalisation folded into the linear maps beside it, which leaves what inference takes and no more."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from .._typing import Array, Tree
from ..arguments import number, shown
from ..backends import as_numpy
from ..layer import Layer
from ..layers import Activation, BatchNorm, Linear
from ..networks import Residual, Sequential
from .steps import Affine, Host, Step, affine, steps, wide

LARGEST_MEAN = {"float32": 3, "float64": 1000}
"""In standard deviations. At that, outputs of 40 networks of four layers changed by 5e-7 (median) to 1.3e-6, and by 3e-13 to 9e-13."""

Entry = tuple[Layer, Tree, Tree]


def fold(
    net: Sequential, params: Tree, state: Tree, *, target: tuple[float, float] | None = None
) -> tuple[Sequential, Tree, Tree]:
    """The network for inference alone: each normalisation folded into a Linear beside it, without Dropout.

    Behind z = x @ W + b, where y = (z - mean) * s + beta with s = gamma / sqrt(var + eps),

        W' = W * s        b' = (b - mean) * s + beta

    (Jacob et al. 2018, arXiv:1712.05877, equation 14). Where an activation stands between, or the normalisation is
    first, as Standardize is, it goes into the Linear after it:

        W' = s[:, None] * W        b' = b + (beta - mean * s) @ W

    Parameters
    ----------
    net, params, state
        A trained network; arrays of any library.
    target : (mean, std), optional
        The scale of the targets that a regression has learned standardised: its outputs times std plus mean, folded
        into the last Linear.

    Returns
    -------
    net, params, state
        Of new arrays in the dtype of the weights, which are computed in float64 and rounded once. Every folded Linear
        has a bias. State is empty where no normalisation stays.

    Raises
    ------
    ValueError
        Naming the layer, where a normalisation has no Linear beside it: an activation or a layer of your own on both
        sides, or nothing behind an activation.

    Notes
    -----
    Inference gives the same outputs to rounding: 1e-6 of the largest in float32, 1e-12 in float64. Two things
    stay as they are, so that this holds, BatchNorm with `statistics="running"`:

    * a normalisation in front of a Linear whose means are several standard deviations from zero. x - mean keeps the
      digits in which x differs from its mean; x @ W' is as large as the means and rounds there. float32 holds means of
      3 standard deviations, float64 of 1,000 (root mean square over the features, as the Linear weighs them).
    * one in the stream of a Residual, behind an activation: the sum takes it, and no Linear alone.

    Behind a Linear nothing is lost: z itself has been rounded at the size of its mean.

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> net = bn.mlp([4, 8, 3], standardize=True, dropout=0.1)
    >>> params, state = net.init(0, backend="numpy")
    >>> folded, weights, rest = bn.fold(net, params, state)
    >>> folded, rest
    (Sequential((Linear(4, 8), Activation('relu'), Linear(8, 3))), {})
    >>> x = np.ones((2, 4), np.float32)
    >>> y, z = net.forward(params, state, x, training=False)[0], folded.forward(weights, rest, x, training=False)[0]
    >>> bool(abs(y - z).max() < 1e-6)
    True
    """
    program = _into_after(_into_before(steps(net, params, state)))
    return _network(program if target is None else scale_outputs(program, target))


def _into_before(program: list[Step]) -> list[Step]:
    folded: list[Step] = []
    for step in program:
        if step.normalizes and folded and type(folded[-1].layer) is Linear:
            a = affine(step)
            weight, bias = _linear(folded[-1])
            folded[-1] = _changed(folded[-1], weight * a.scale, (bias - a.mean) * a.scale + a.beta)
        else:
            folded.append(step)
    return folded


def _into_after(program: list[Step]) -> list[Step]:
    folded: list[Step] = []  # from the last step to the first
    for i in range(len(program) - 1, -1, -1):
        step, after = program[i], folded[-1] if folded else None
        linear = after is not None and type(after.layer) is Linear
        if not step.normalizes:
            folded.append(step)
        elif after is not None and linear and _holds(affine(step), after):
            folded[-1] = _taken_before(affine(step), after)
        elif linear or (after is not None and after.layer in ("keep", "add")):
            folded.append(_frozen(step))
        else:
            before = program[i - 1] if i else None
            raise ValueError(
                f"net: {step}, cannot be folded: expected a Linear in front of it or behind it, "
                f"got {_words(before)} in front and {_words(after)} behind"
            )
    return folded[::-1]


def _taken_before(a: Affine, after: Step) -> Step:
    """The Linear behind a normalisation with it: the bias makes up for how the weights round, where x is the mean."""
    weight, bias = _linear(after)
    scaled = (a.scale[:, None] * weight).astype(as_numpy(_like(after)).dtype).astype(np.float64)
    return _changed(after, scaled, bias + a.beta @ weight - a.mean @ scaled)


def _words(step: Step | None) -> str:
    return "nothing" if step is None else "a Residual" if step.layer in ("keep", "add") else str(step)


def _holds(a: Affine, after: Step) -> bool:
    """Whether the Linear's dtype holds the means beside the deviations from them."""
    weight = _linear(after)[0]
    means = np.linalg.norm((a.mean * a.scale)[:, None] * weight)
    deviations = np.linalg.norm((abs(a.gamma) + abs(a.beta))[:, None] * weight)
    return bool(means <= LARGEST_MEAN.get(as_numpy(_like(after)).dtype.name, 3) * deviations)


def scale_outputs(program: list[Step], target: tuple[float, float]) -> list[Step]:
    """The steps with the last Linear's outputs times std plus mean."""
    mean, std = _checked(target)
    last = program[-1] if program else None
    if last is None or type(last.layer) is not Linear:
        raise ValueError(f"target: expected a network that ends in a Linear, which takes the scale, got {_words(last)}")
    weight, bias = _linear(last)
    return [*program[:-1], _changed(last, weight * std, bias * std + mean)]


def _checked(target: Any) -> tuple[float, float]:
    if not isinstance(target, tuple | list) or len(target) != 2:
        raise ValueError(f"target: expected (mean, std), got {shown(target)}")
    mean, std = target
    number("target", mean, -math.inf, words="a finite mean")
    number("target", std, 0, words="a finite std of at least 0")
    return float(mean), float(std)


# ---- steps


def _linear(step: Step) -> tuple[Host, Host]:
    """weight and bias, zeros where it has none, in float64."""
    weight = wide(step.params["weight"])
    return weight, wide(step.params["bias"]) if "bias" in step.params else np.zeros(weight.shape[1])


def _changed(step: Step, weight: Host, bias: Host) -> Step:
    """A Linear with other numbers; they stay in float64 until the network is made."""
    assert isinstance(step.layer, Linear)
    layer, params = dataclasses.replace(step.layer, bias=True), {"weight": weight, "bias": bias}
    return Step(step.name, layer, params, like=_like(step))


def _frozen(step: Step) -> Step:
    """What stays: it has learned its statistics, and no bias in front of it is refused."""
    if not isinstance(step.layer, BatchNorm):
        return step
    return dataclasses.replace(step, layer=dataclasses.replace(step.layer, statistics="running"))


def _like(step: Step) -> Any:
    return step.params["weight"] if step.like is None else step.like


# ---- the network of the steps


def _network(program: list[Step]) -> tuple[Sequential, Tree, Tree]:
    opened: list[list[Entry]] = [[]]
    for step in program:
        if step.layer == "keep":
            opened.append([])
        elif step.layer == "add":
            inner = opened.pop()
            opened[-1].append(assembled(Residual, inner))
        else:
            opened[-1].append(_entry(step))
    net, params, state = assembled(Sequential, opened[0])
    assert isinstance(net, Sequential)
    return net, params, state


def _entry(step: Step) -> Entry:
    assert isinstance(step.layer, Layer)
    if step.like is None:
        return step.layer, step.params, step.state
    return step.layer, {name: _as(array, step.like) for name, array in step.params.items()}, {}


def assembled(kind: type[Sequential], entries: list[Entry]) -> Entry:
    """A network of these layers, with its trees."""
    entries = entries or [(Activation("identity"), {}, {})]
    trees = [{str(i): entry[which] for i, entry in enumerate(entries) if entry[which]} for which in (1, 2)]
    return kind(tuple(layer for layer, _, _ in entries)), trees[0], trees[1]


def _as(host: Host, like: Any) -> Array:
    """A host array in the library, on the device and in the dtype of another."""
    made: Array = array_namespace(like).asarray(host, dtype=like.dtype, device=device(like))
    return made
