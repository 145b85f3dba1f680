"""Statistics of the batch that all ranks hold together."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace, device

from .._typing import AllReduce, Array, Native
from ..kernels import reference
from ..kernels.reference import Moments
from . import checks

FAR = 1000.0
"""Standard deviations from zero up to which a mean over ranks needs one sum only."""


def moments_over_ranks(kernels: Any, x: Array, axis: int, count: int, all_reduce: AllReduce) -> tuple[Moments, int]:
    """Moments of the batch that all ranks hold together, merged by counts (Chan, Golub and LeVeque 1979).

    The squares of each rank are about its own mean. How far the means lie apart takes the mean of all: one sum
    about zero tells it to 1e-9 of the variance in float64, unless some mean is more than FAR standard deviations
    from zero. Then, and without float64, a second sum is taken about the mean that the first has given.
    """
    xp, dtype, channels = array_namespace(x), reference.statistics_dtype(x), x.shape[axis]
    wide, place = reference._float64(x) or dtype, device(x)
    if count:
        mean, remainder, var = (xp.astype(part, wide) for part in kernels.moments(x, axis))
    else:
        mean = remainder = var = xp.zeros((channels,), dtype=wide, device=place)
    own = mean + remainder
    parts = xp.asarray([count >> 12, count & 0xFFF], dtype=wide, device=place)  # float32 is exact to 2^24 only
    total = all_reduce(xp.concat([own * count, (var + own * own) * count, parts]))
    checks.floating("all_reduce", total)
    high, low = _on_host(total[-2:])
    n = high * 4096 + low
    refuse_too_few(n, x, " over all ranks")
    mean_all, square = total[:channels] / n, total[channels : 2 * channels] / n
    var_all, rest = square - mean_all * mean_all, xp.zeros_like(square)
    limit = FAR * FAR if wide == xp.float64 else 0.0
    if not bool(xp.all(mean_all * mean_all <= limit * var_all)):
        delta, share = (mean - mean_all) + remainder, count / n
        total = all_reduce(xp.concat([delta * share, (var + delta * delta) * share]))
        rest, var_all = total[:channels], total[channels:] - total[:channels] * total[:channels]
    rounded = xp.astype(mean_all, dtype)
    remainder = xp.astype((mean_all - xp.astype(rounded, wide)) + rest, dtype)
    return Moments(rounded, remainder, xp.astype(var_all, dtype)), n


def _on_host(counts: Native) -> list[int]:
    """Both with one wait for the device, where the library copies an array in one go."""
    values = counts.tolist() if hasattr(counts, "tolist") else [counts[0], counts[1]]
    return [int(value) for value in values]


def refuse_too_few(count: int, x: Array, where: str = "") -> None:
    """Refuse fewer values of a channel than statistics take."""
    if count < 2:
        raise ValueError(
            f"x: expected at least 2 values for each channel in training, got {count}{where} "
            f"(shape {checks.shape(x)}); use a larger batch, or normalize with given statistics"
        )
