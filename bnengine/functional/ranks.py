"""Statistics of a whole batch: of this process, of all ranks together, or given."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace, device

from .._typing import AllReduce, Array, DType, Native
from ..arguments import instance
from ..kernels import reference
from . import checks
from .moments import Moments, checked_weights, total_weight

FAR = 1000.0
"""Standard deviations from zero up to which a mean over ranks needs one sum only."""


def batch_statistics(
    kernels: Any,
    x: Array,
    axis: int,
    weights: Array | None,
    statistics: Moments | None,
    all_reduce: AllReduce | None,
) -> tuple[Array | None, reference.Moments, Any]:
    """Checked weights, moments of the whole batch, and its count or the sum of its weights."""
    if weights is not None:
        weights = checked_weights(weights, x, axis, part=all_reduce is not None or statistics is not None)
    if statistics is not None:
        return weights, *_of_whole(statistics, x, axis)
    if all_reduce is not None:
        return weights, *moments_over_ranks(kernels, x, axis, all_reduce, weights)
    if weights is not None:
        total = total_weight(weights)
        return weights, kernels.weighted_moments(x, weights, total, axis), total
    count = reference._count(x, axis)
    refuse_too_few(count, x)
    return None, kernels.moments(x, axis), count


def _of_whole(statistics: Any, x: Array, axis: int) -> tuple[reference.Moments, Any]:
    """Given moments of the batch that x is a part of, checked, and their weight."""
    instance("statistics", statistics, Moments, "None or Moments, as bnengine.moments gives them")
    checks.like("statistics", statistics.mean, x)
    wanted = (x.shape[axis],)
    if tuple(statistics.mean.shape) != wanted or statistics.mean.dtype != reference.statistics_dtype(x):
        dtype = "float64" if checks.dtype_name(x) == "float64" else "float32"
        raise ValueError(
            f"statistics: expected moments of shape {wanted} and {dtype} for x, "
            f"got {checks.shape(statistics.mean)} and {statistics.mean.dtype}"
        )
    return reference.Moments(*statistics[:3]), statistics.weight


def moments_over_ranks(
    kernels: Any, x: Array, axis: int, all_reduce: AllReduce, weights: Array | None = None
) -> tuple[reference.Moments, Any]:
    """Moments of the batch that all ranks hold together, merged by weights, and their weight (Chan et al. 1979).

    The squares of each rank are about its own mean. How far the means lie apart takes the mean of all: one sum
    about zero tells it to 1e-9 of the variance in float64, unless some mean is more than FAR standard deviations
    from zero. Then, and without float64, a second sum is taken about the mean that the first has given.
    """
    xp, dtype, channels = array_namespace(x), reference.statistics_dtype(x), x.shape[axis]
    wide, place = reference._float64(x) or dtype, device(x)
    weight, (mean, remainder, var) = _own(kernels, x, axis, weights, wide)
    own = mean + remainder
    # A count travels in two parts: float32 is exact to 2^24 only.
    two = (weight // 4096, weight % 4096) if weights is None else (0, weight)
    parts = xp.stack([xp.asarray(part, dtype=wide, device=place) for part in two])
    total = all_reduce(xp.concat([own * weight, (var + own * own) * weight, parts]))
    checks.floating("all_reduce", total)
    high, low = _on_host(total[-2:])
    n = high * 4096 + low
    if weights is None:
        refuse_too_few(int(n), x, " over all ranks")
    mean_all, square = total[:channels] / n, total[channels : 2 * channels] / n
    var_all, rest = square - mean_all * mean_all, xp.zeros_like(square)
    limit = FAR * FAR if wide == xp.float64 else 0.0
    if not bool(xp.all(mean_all * mean_all <= limit * var_all)):
        delta, share = (mean - mean_all) + remainder, weight / n
        total = all_reduce(xp.concat([delta * share, (var + delta * delta) * share]))
        rest, var_all = total[:channels], total[channels:] - total[:channels] * total[:channels]
    rounded = xp.astype(mean_all, dtype)
    remainder = xp.astype((mean_all - xp.astype(rounded, wide)) + rest, dtype)
    m = reference.Moments(rounded, remainder, xp.astype(var_all, dtype))
    return m, int(n) if weights is None else n


def _own(
    kernels: Any, x: Array, axis: int, weights: Array | None, wide: DType
) -> tuple[Any, tuple[Array, Array, Array]]:
    """The weight of this rank, and its statistics as wide arrays: zeros where its weight is 0."""
    xp, count = array_namespace(x), reference._count(x, axis)
    zero = xp.zeros((x.shape[axis],), dtype=wide, device=device(x))
    weight = count if weights is None or not count else total_weight(weights)
    if isinstance(weight, int | float) and not weight:
        return 0, (zero, zero, zero)
    if weights is None:
        m = kernels.moments(x, axis)
    else:  # on a device all may be 0, and then so is what is found
        total = weight if isinstance(weight, float) else xp.where(weight == 0, weight + 1, weight)
        m = kernels.weighted_moments(x, weights, total, axis)
    mean, remainder, var = (xp.astype(part, wide) for part in m)
    return weight, (mean, remainder, var)


def _on_host(both: Native) -> list[float]:
    """Both with one wait for the device, where the library copies an array in one go."""
    values = both.tolist() if hasattr(both, "tolist") else [both[0], both[1]]
    return [float(value) for value in values]


def refuse_too_few(count: int, x: Array, where: str = "") -> None:
    """Refuse fewer values of a channel than statistics take."""
    if count < 2:
        raise ValueError(
            f"x: expected at least 2 values for each channel in training, got {count}{where} "
            f"(shape {checks.shape(x)}); use a larger batch, or normalize with given statistics"
        )
