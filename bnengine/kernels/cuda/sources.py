"""What each CUDA kernel takes and does, as data: `device` builds them with CuPy when they are first called.

Letters are types that CuPy fills in from the arrays: T and D in memory (float16, bfloat16, float32 or
float64), M of the statistics, G and B of gamma and beta.
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
    """The .cuh files in front of it."""


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
    """The .cuh files in front of it."""


class Raw(NamedTuple):
    """A kernel whose source stands complete in its files; types and constants are put in front."""

    source: str


Spec: TypeAlias = Elementwise | Reduction | Raw
Specs: TypeAlias = dict[str, Elementwise | Reduction]

# ---- batch normalisation. One thread visits values of one channel: see Walk.

_WALK = "int64 outer, int64 channels, int64 inner, int64 rows, int64 columns"
_CHANNEL = "raw M mean, raw M remainder, raw M var, raw G gamma, raw B beta, bool has_gamma, bool has_beta, float64 eps"
_START_WALK = "Walk walk(i, outer, channels, inner, rows, columns);"
_START = f"""{_START_WALK}
ptrdiff_t c = walk.channel;
Channel<M> channel(mean[c], remainder[c], var[c], has_gamma ? (M)gamma[c] : M(1), has_beta ? (M)beta[c] : M(0), (M)eps);
"""

KERNELS: Specs = {
    "normalize": Elementwise(
        f"raw T x, {_CHANNEL}, bool relu, {_WALK}",
        "raw T y",
        f"{_START} normalize<T>(walk, channel, x, y, relu)",
        "normalization.cuh",
    ),
    "input_gradient": Elementwise(
        f"raw D dy, raw T x, {_CHANNEL}, raw S sum_dy, raw S sum_dy_xhat, float64 count, bool relu, {_WALK}",
        "raw T dx",
        f"{_START} input_gradient<T>(walk, channel, dy, x, dx, M(sum_dy[c] / count), M(sum_dy_xhat[c] / count), relu)",
        "normalization.cuh",
    ),
    "given_gradient": Elementwise(
        f"raw D dy, raw T x, {_CHANNEL}, bool relu, {_WALK}",
        "raw T dx",
        f"{_START} given_gradient<T>(walk, channel, dy, x, dx, relu)",
        "normalization.cuh",
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
        "normalization.cuh",
    ),
    "pool_moments": Reduction(
        "M count, M base, M offset, M share_var",
        "M mean, M remainder, M var",
        "Pool(count, base, offset, share_var)",
        "pooled(a, b)",
        "mean = a.mean, remainder = (a.mean - (double)(M)a.mean) + a.remainder, var = a.var",
        "Pool()",
        "Pool",
        "normalization.cuh",
    ),
    "share_gradients": Elementwise(
        f"raw D dy, raw T x, {_CHANNEL}, bool relu, {_WALK}",
        "M share_dy, M share_dy_xhat",
        f"""{_START}
GradientShare<M> share(walk, channel, dy, x, relu);
share_dy = share.dy;
share_dy_xhat = share.dy_xhat""",
        "normalization.cuh",
    ),
    "pool_gradients": Reduction(
        "M share_dy, M share_dy_xhat",
        "M sum_dy, M sum_dy_xhat",
        "GradientPool(share_dy, share_dy_xhat)",
        "pooled(a, b)",
        "sum_dy = a.dy, sum_dy_xhat = a.dy_xhat",
        "GradientPool()",
        "GradientPool",
        "normalization.cuh",
    ),
    "blend": Elementwise(
        "M mean, M var, M batch_mean, M batch_var, float64 weight, float64 unbiased",
        "M new_mean, M new_var",
        """new_mean = mean + (batch_mean - mean) * (M)weight;
new_var = var + (batch_var * (M)unbiased - var) * (M)weight""",
        "normalization.cuh",
    ),
    "sigmoid": Elementwise("T x", "T y", "y = T(logistic((wide<T>::type)x))", "arithmetic.cuh network.cuh"),
    "sigmoid_backward": Elementwise(
        "T y, T dy",
        "T dx",
        "wide<T>::type s = y; dx = T(s * (1 - s) * (wide<T>::type)dy)",
        "arithmetic.cuh network.cuh",
    ),
}
"""The kernels that CuPy generates, by name."""

_TILES = "cluster.cuh tiles.cuh"

RAW: dict[str, Raw] = {
    "held_forward": Raw(f"{_TILES} held_forward.cuh"),
    "held_backward": Raw(f"{_TILES} held_backward.cuh"),
    "split_moments": Raw(f"{_TILES} split.cuh split_moments.cuh"),
    "split_sums": Raw(f"{_TILES} split.cuh split_sums.cuh"),
    "pass_forward": Raw(f"{_TILES} pass_forward.cuh"),
    "pass_backward": Raw(f"{_TILES} pass_backward.cuh"),
    "cross_entropy": Raw("arithmetic.cuh cross_entropy.cuh"),
    "update": Raw("arithmetic.cuh updates.cuh"),
}
"""The kernels written as they are, by name."""


def preamble(spec: Spec) -> str:
    """The device code in front of a kernel; all of a raw one."""
    return "\n".join(Path(__file__).with_name(name).read_text(encoding="utf-8") for name in spec.source.split())


def fingerprints() -> dict[str, str]:
    """A hash of each kernel's source: a record of a run on hardware holds them, so that changes since show."""
    specs: dict[str, Spec] = {**KERNELS, **RAW}
    texts = {name: "\0".join((type(s).__name__, name, *s, preamble(s))) for name, s in specs.items()}
    return {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in texts.items()}
