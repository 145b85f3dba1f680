"""What each CUDA kernel takes and does, as data: `cuda` builds them with CuPy when they are first called.

Letters are types that CuPy fills in from the arrays: T and D in memory (float16, bfloat16, float32 or
float64), M of the statistics, G and B of gamma and beta, P of a parameter and S of its slots, L of labels.
The device code that the expressions call stands in the .cuh files beside this module.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple, TypeAlias


class Elementwise(NamedTuple):
    """A kernel whose operation runs once for each index `i`."""

    inputs: str
    outputs: str
    operation: str
    source: str
    """The .cuh file in front of it."""


class Reduction(NamedTuple):
    """A kernel that folds `reduce` over `map` of all elements along axes and stores `finish`."""

    inputs: str
    outputs: str
    map: str
    reduce: str
    finish: str
    identity: str
    reduce_type: str
    source: str
    """The .cuh file in front of it."""


Specs: TypeAlias = dict[str, Elementwise | Reduction]

# ---- batch normalisation. One thread visits values of one channel: see Walk.

_WALK = "int64 outer, int64 channels, int64 inner, int64 rows, int64 columns"
_CHANNEL = "raw M mean, raw M remainder, raw M var, raw G gamma, raw B beta, bool has_gamma, bool has_beta, float64 eps"
_START_WALK = "Walk walk(i, outer, channels, inner, rows, columns);"
_START = f"""{_START_WALK}
ptrdiff_t c = walk.channel;
Channel<M> channel(mean[c], remainder[c], var[c], has_gamma ? (M)gamma[c] : M(1), has_beta ? (M)beta[c] : M(0), (M)eps);
"""

_NORMALIZATION: Specs = {
    "normalize": Elementwise(
        f"raw T x, {_CHANNEL}, bool relu, {_WALK}",
        "raw T y",
        f"{_START} normalize<T>(walk, channel, x, y, relu)",
        "cuda_normalization.cuh",
    ),
    "input_gradient": Elementwise(
        f"raw D dy, raw T x, {_CHANNEL}, raw S sum_dy, raw S sum_dy_xhat, float64 count, bool relu, {_WALK}",
        "raw T dx",
        f"{_START} input_gradient<T>(walk, channel, dy, x, dx, M(sum_dy[c] / count), M(sum_dy_xhat[c] / count), relu)",
        "cuda_normalization.cuh",
    ),
    "given_gradient": Elementwise(
        f"raw D dy, raw T x, {_CHANNEL}, bool relu, {_WALK}",
        "raw T dx",
        f"{_START} given_gradient<T>(walk, channel, dy, x, dx, relu)",
        "cuda_normalization.cuh",
    ),
    "share_moments": Elementwise(
        f"raw T x, {_WALK}",
        "M count, M base, M offset, M var",
        f"""{_START_WALK}
Share<M> share(walk, x);
count = share.count;
base = share.base;
offset = share.offset;
var = share.var""",
        "cuda_normalization.cuh",
    ),
    "pool_moments": Reduction(
        "M count, M base, M offset, M share_var",
        "M mean, M remainder, M var",
        "Pool(count, base, offset, share_var)",
        "pooled(a, b)",
        "mean = a.mean, remainder = (a.mean - (double)(M)a.mean) + a.remainder, var = a.var",
        "Pool()",
        "Pool",
        "cuda_normalization.cuh",
    ),
    "share_gradients": Elementwise(
        f"raw D dy, raw T x, {_CHANNEL}, bool relu, {_WALK}",
        "M share_dy, M share_dy_xhat",
        f"""{_START}
GradientShare<M> share(walk, channel, dy, x, relu);
share_dy = share.dy;
share_dy_xhat = share.dy_xhat""",
        "cuda_normalization.cuh",
    ),
    "pool_gradients": Reduction(
        "M share_dy, M share_dy_xhat",
        "M sum_dy, M sum_dy_xhat",
        "GradientPool(share_dy, share_dy_xhat)",
        "pooled(a, b)",
        "sum_dy = a.dy, sum_dy_xhat = a.dy_xhat",
        "GradientPool()",
        "GradientPool",
        "cuda_normalization.cuh",
    ),
    "blend": Elementwise(
        "M mean, M var, M batch_mean, M batch_var, float64 weight, float64 unbiased",
        "M new_mean, M new_var",
        """new_mean = mean + (batch_mean - mean) * (M)weight;
new_var = var + (batch_var * (M)unbiased - var) * (M)weight""",
        "cuda_normalization.cuh",
    ),
}

# ---- sigmoid and softmax

_NETWORK: Specs = {
    "sigmoid": Elementwise("T x", "T y", "y = T(logistic((wide<T>::type)x))", "cuda_network.cuh"),
    "sigmoid_backward": Elementwise(
        "T y, T dy", "T dx", "wide<T>::type s = y; dx = T(s * (1 - s) * (wide<T>::type)dy)", "cuda_network.cuh"
    ),
    "softmax_rows": Reduction(
        "T z",
        "M top, M total",
        "Exponentials<M>((M)z)",
        "joined(a, b)",
        "top = a.top, total = a.total",
        "Exponentials<M>()",
        "Exponentials<M>",
        "cuda_network.cuh",
    ),
    # The thread of a row's label stores the row's loss; of a label outside the classes, the row's first one NaN.
    "softmax_gradient": Elementwise(
        "T z, raw L labels, raw M top, raw M total, int64 rows, int64 classes",
        "T dz, raw M loss",
        """ptrdiff_t row = i / classes, column = i % classes;
long long label = labels[row];
bool outside = label < 0 || label >= classes;
M shifted = (M)z - top[row], hot = outside ? M(CUDART_NAN) : M(label == column);
dz = T((exp(shifted) / total[row] - hot) / (M)rows);
if (label == column || (outside && column == 0)) loss[row] = log(total[row]) - (outside ? hot : shifted)""",
        "cuda_network.cuh",
    ),
    "mean_loss": Reduction(
        "M row_loss, float64 rows", "M loss", "row_loss", "a + b", "loss = a / rows", "0", "double", "cuda_network.cuh"
    ),
}

# ---- optimisers. Parameters and slots are read before they are written: input and output are the same memory.

_READ = "typedef wide<P>::type M; M value = p, step = (M)rate, gradient = decayed((M)g, value, (M)decay);"

_OPTIMIZERS: Specs = {
    "sgd": Elementwise(
        "P p, G g, float64 decay, float64 rate",
        "P p_new",
        f"{_READ} p_new = P(value - step * gradient)",
        "cuda_network.cuh",
    ),
    "momentum": Elementwise(
        "P p, G g, S velocity, float64 decay, float64 rate, float64 momentum, bool nesterov",
        "P p_new, S velocity_new",
        f"""{_READ}
M v = (M)momentum * (M)velocity + gradient;
velocity_new = S(v);
p_new = P(value - step * (nesterov ? gradient + (M)momentum * v : v))""",
        "cuda_network.cuh",
    ),
    "rmsprop": Elementwise(
        "P p, G g, S square, float64 decay, float64 rate, float64 forget, float64 eps",
        "P p_new, S square_new",
        f"""{_READ}
M s = (M)forget * (M)square + (M)(1 - forget) * (gradient * gradient);
square_new = S(s);
p_new = P(value - step * gradient / (sqrt(s) + (M)eps))""",
        "cuda_network.cuh",
    ),
    # `shrink` is the factor of decoupled decay, `decay` that of L2: one of them does nothing.
    "adam": Elementwise(
        "P p, G g, S first, S second, float64 decay, float64 shrink, float64 rate, float64 beta1, float64 beta2, "
        "float64 eps, float64 root",
        "P p_new, S first_new, S second_new",
        f"""{_READ}
M m = (M)beta1 * (M)first + (M)(1 - beta1) * gradient;
M v = (M)beta2 * (M)second + (M)(1 - beta2) * (gradient * gradient);
first_new = S(m);
second_new = S(v);
p_new = P((shrink == 1 ? value : value * (M)shrink) - step * m / (sqrt(v) / (M)root + (M)eps))""",
        "cuda_network.cuh",
    ),
}

KERNELS: Specs = {**_NORMALIZATION, **_NETWORK, **_OPTIMIZERS}
"""Every kernel of the CUDA path by name."""


def preamble(spec: Elementwise | Reduction) -> str:
    """The device code in front of a kernel."""
    return Path(__file__).with_name(spec.source).read_text(encoding="utf-8")


def fingerprints() -> dict[str, str]:
    """A hash of each kernel's source: a record of a run on hardware holds them, so that changes since show."""
    return {name: _fingerprint(name, spec) for name, spec in KERNELS.items()}


def _fingerprint(name: str, spec: Elementwise | Reduction) -> str:
    text = "\0".join((type(spec).__name__, name, *spec, preamble(spec)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
