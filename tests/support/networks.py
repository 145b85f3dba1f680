"""Networks as a training might leave them, and what they give here and in ONNX."""

from __future__ import annotations

import numpy as np
import pytest

import bnengine as bn
from bnengine import trees


def trained(net, rng, dtype="float64", asarray=np.asarray):
    """Parameters and state as a training might leave them: gammas of both signs and zero, means beside zero."""
    params, state = net.init(0, backend=bn.backend("numpy", dtype=dtype))

    def moved(name, leaf):
        if name.endswith("batches"):
            return 7
        drawn = rng.standard_normal(leaf.shape)
        value = np.exp(drawn) if name.endswith("var") else leaf + 0.7 * drawn
        if name.endswith("gamma"):
            value[0] = 0
        return asarray(value.astype(dtype))

    flat = ({name: moved(name, leaf) for name, leaf in trees.flatten(tree).items()} for tree in (params, state))
    return [trees.unflatten(leaves) for leaves in flat]


def outputs(net, params, state, x):
    """What the network gives in inference."""
    return net.forward(params, state, x, training=False)[0]


def evaluated(model, x, runtime="reference"):
    """The outputs of an ONNX model for the rows of x, by ONNX's own evaluator or by ONNX Runtime."""
    if runtime == "reference":
        from onnx.reference import ReferenceEvaluator

        return ReferenceEvaluator(model).run(None, {model.graph.input[0].name: x})
    session = pytest.importorskip("onnxruntime").InferenceSession(model.SerializeToString())
    return session.run(None, {session.get_inputs()[0].name: x})
