"""Fully connected networks by their sizes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import get_args

from ._typing import Initialization, Norm, NormPosition
from .arguments import instance, number, one_of, shown
from .functional import ACTIVATIONS
from .functional.activations import ActivationName
from .layers import (
    INITIALIZATIONS,
    Activation,
    BatchNorm,
    Dropout,
    DynamicTanh,
    Layer,
    Linear,
    Standardize,
    check_size,
)
from .networks import Residual, Sequential


def mlp(
    sizes: Sequence[int],
    *,
    norm: Norm | None = "batch",
    activation: ActivationName = "relu",
    norm_position: NormPosition = "pre",
    standardize: bool = False,
    initialization: Initialization | None = None,
    scale: float = 1.0,
    eps: float = 1e-5,
    momentum: float | None = 0.1,
    dropout: float = 0.0,
    residual: bool = False,
) -> Sequential:
    """A fully connected network.

    Parameters
    ----------
    sizes : sequence of int
        Inputs, hidden layers, outputs: [784, 256, 10]. [n, 1] is logistic regression.
    norm : {"batch", "dyt", None}
        Batch normalisation of the hidden layers, or `DynamicTanh` in its place; the output layer has none.
    activation : str
        Of the hidden layers: relu, leaky_relu, gelu, silu, elu, selu, softplus, sigmoid, tanh or identity. ReLU
        after normalisation is fused.
    norm_position : {"pre", "post"}
        "pre" normalises z, before the activation, and drops the bias that batch normalisation cancels; "post"
        normalises the activation's output.
    standardize : bool
        A Standardize layer in front.
    initialization : {None, "he", "glorot", "lecun", "normal"}
        None: what suits the activation, he for ReLU and its smooth kin, lecun for selu, glorot otherwise. Times
        `scale`.
    eps, momentum
        Of every BatchNorm.
    dropout : float
        Part of the values of each hidden layer that is dropped in training, in [0, 1).
    residual : bool
        A skip around each hidden layer that gives as many features as it takes: y = x + f(x).

    Returns
    -------
    Sequential

    Raises
    ------
    ValueError
        Naming the argument.

    Examples
    --------
    >>> import bnengine as bn
    >>> print(bn.mlp([64, 32, 10]).summary())
       layer                outputs  parameters
    0  Linear without bias       32       2,048
    1  BatchNorm + relu          32          64
    2  Linear                    10         330
       total                              2,442
    """
    one_of("norm", norm, (*get_args(Norm), None))
    instance("standardize", standardize, bool, "True or False")
    instance("residual", residual, bool, "True or False")
    one_of("norm_position", norm_position, get_args(NormPosition))
    one_of("activation", activation, ACTIVATIONS)
    number("dropout", dropout, 0, 0.999999, words="a number in [0, 1)")
    if not isinstance(sizes, list | tuple) or len(sizes) < 2:
        raise ValueError(f"sizes: expected at least inputs and outputs, as in [64, 10], got {shown(sizes)}")
    for size in sizes:
        check_size("sizes", size)
    if initialization is not None:
        one_of("initialization", initialization, INITIALIZATIONS)
    spread = initialization or ACTIVATIONS[activation].initialization
    bias = norm != "batch" or norm_position == "post"
    layers: list[Layer] = [Standardize(sizes[0])] if standardize else []
    skips = 0
    for inputs, outputs in itertools.pairwise(sizes[:-1]):
        hidden = [
            Linear(inputs, outputs, bias=bias, initialization=spread, scale=scale),
            *_norm_and_activation(outputs, norm, norm_position, activation, eps, momentum),
            *([Dropout(dropout)] if dropout else []),
        ]
        skip = residual and inputs == outputs
        skips += skip
        layers += [Residual(tuple(hidden))] if skip else hidden
    if residual and not skips:
        raise ValueError(f"residual: expected a hidden layer of as many features as it takes, got sizes {list(sizes)}")
    return Sequential((*layers, Linear(sizes[-2], sizes[-1], initialization=spread, scale=scale)))


def _norm_and_activation(
    features: int,
    norm: Norm | None,
    position: NormPosition,
    activation: ActivationName,
    eps: float,
    momentum: float | None,
) -> list[Layer]:
    """The activation with what normalises before or after it; ReLU is fused with the batch normalisation before it."""
    fused = norm == "batch" and position == "pre" and activation == "relu"
    norms: list[Layer] = []
    if norm == "batch":
        norms = [BatchNorm(features, activation="relu" if fused else None, eps=eps, momentum=momentum)]
    elif norm == "dyt":
        norms = [DynamicTanh(features)]
    between: list[Layer] = [] if fused else [Activation(activation)]
    return norms + between if position == "pre" else between + norms
