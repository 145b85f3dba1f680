"""A network as arrays of an npz file, and the lines of Python that run it with NumPy alone."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from .._typing import Tree
from ..data.encoding import Encoding
from ..data.layout import MISSING
from ..layers import Activation, Linear
from ..networks import Sequential
from .folding import fold
from .steps import Host, Step, affine, known, steps

FORMULAS = {
    "relu": "np.maximum(x, 0)",
    "leaky_relu": "np.where(x <= 0, 0.01 * x, x)",
    "gelu": "x / 2 * (1 + np.tanh(0.7978845608028654 * (x + 0.044715 * x**3)))",
    "silu": "x / 2 * (1 + np.tanh(x / 2))",
    "elu": "np.where(x > 0, x, np.expm1(np.minimum(x, 0)))",
    "selu": "1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0)))",
    "softplus": "np.logaddexp(x, np.zeros_like(x))",
    "sigmoid": "(1 + np.tanh(x / 2)) / 2",
    "tanh": "np.tanh(x)",
}

LOAD = """import numpy as np


def load(path):
    with np.load(path) as file:
        return dict(file)
"""

ENCODE = f'''

def encode(model, rows):
    """Rows of cells, numbers or text, in the order of model["columns"], as numbers."""
    features = []
    for i, column in enumerate(zip(*rows)):
        cells = np.asarray([str(cell).strip() for cell in column])
        gone = np.isin(np.char.lower(cells), {sorted(MISSING)})
        if f"texts {{i}}" in model:
            features += [cells == text for text in model[f"texts {{i}}"]]
        else:
            features.append(np.where(gone, model["fill"][i], np.where(gone, "0", cells).astype(float)))
        features += [gone] if model["indicator"][i] else []
    return np.stack(features, axis=1).astype(float)
'''

OUTPUTS = """

def outputs(model, x):
    x, kept = np.asarray(x, str(model["dtype"])), []
    for step in model["steps"]:
        word, _, i = str(step).partition(" ")
"""

STEPS = {
    "linear": 'x = x @ model[f"weight {i}"] + model[f"bias {i}"]',
    "norm": 'x = (x - model[f"mean {i}"]) * model[f"scale {i}"] + model[f"shift {i}"]',
    "keep": "kept.append(x)",
    "add": "x = kept.pop() + x",
}

CLASSES = '''    return x


def predict(model, x):
    """(labels, probabilities) of the rows of x."""
    y = outputs(model, x).astype(float)
    p = np.exp(y - y.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return model["classes"][p.argmax(axis=1)], p
'''

VALUES = '''    return x


def predict(model, x):
    """The values of the rows of x."""
    return outputs(model, x)[:, 0].astype(float) * model["target"][1] + model["target"][0]
'''


def packed(
    net: Sequential,
    params: Tree,
    state: Tree,
    *,
    classes: list[str],
    target: tuple[float, float],
    columns: list[str],
    encoding: Encoding,
) -> dict[str, Host]:
    """The arrays of the file: the folded network's steps, and what becomes of rows before it and of outputs behind it.

    Raises
    ------
    ValueError
        Naming a layer that the file cannot hold.
    """
    arrays: dict[str, Host] = {}
    words = []
    for i, step in enumerate(steps(*fold(net, params, state))):
        known(step, "the file")
        word, own = _step(step)
        words.append(f"{word} {i}" if own else word)
        arrays |= {f"{name} {i}": array for name, array in own.items()}
    arrays["steps"] = np.asarray(words)
    arrays["dtype"] = np.asarray(next(a.dtype.name for name, a in arrays.items() if name.startswith("weight")))
    arrays |= {"classes": np.asarray(classes)} if classes else {"target": np.asarray(target, np.float64)}
    read = encoding.columns
    names = [column.name for column in read] or columns
    arrays |= {"columns": np.asarray(names)} if names else {}
    if read:
        arrays["fill"] = np.asarray([np.nan if column.fill is None else column.fill for column in read])
        arrays["indicator"] = np.asarray([column.indicator for column in read])
    for i, column in enumerate(read):
        arrays |= {} if column.categories is None else {f"texts {i}": np.asarray(column.categories, dtype=np.str_)}
    return arrays


def to_bytes(arrays: dict[str, Host]) -> bytes:
    """The npz file of these arrays."""
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]  # NumPy's stub takes the arrays for allow_pickle
    return file.getvalue()


def loader(arrays: dict[str, Host]) -> str:
    """The Python that runs the file: it has what the file's steps need, and nothing else."""
    words = {str(step).partition(" ")[0] for step in arrays["steps"]}
    bodies = {word: line for word, line in STEPS.items() if word in words}
    bodies |= {name: f"x = {formula}" for name, formula in FORMULAS.items() if name in words}
    branches = [f'        if word == "{word}":\n            {line}\n' for word, line in bodies.items()]
    encode = ENCODE if "fill" in arrays else ""
    return LOAD + encode + OUTPUTS + "".join(branches) + (CLASSES if "classes" in arrays else VALUES)


def _step(step: Step) -> tuple[str, dict[str, Host]]:
    """Its word, and its arrays in the dtype of the network."""
    if isinstance(step.layer, str):
        return step.layer, {}
    if isinstance(step.layer, Activation):
        return step.layer.name, {}
    if isinstance(step.layer, Linear):
        weight = np.asarray(step.params["weight"])
        return "linear", {"weight": weight, "bias": step.params.get("bias", np.zeros(weight.shape[1], weight.dtype))}
    a, dtype = affine(step), np.asarray(step.state["mean"]).dtype
    own: dict[str, Any] = {"mean": a.mean, "scale": a.scale, "shift": a.beta}
    return "norm", {name: array.astype(dtype) for name, array in own.items()}
