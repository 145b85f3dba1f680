"""What is computed once for each channel, between the passes over x: compiled, because it is so little.

Sums come here in float64. Coefficients leave in the statistics dtype, laid out as the loops over x want:

    y  = (x - mean) * scale + shift
    dx = dy * scale + (x - mean) * slope + offset

`shift` holds beta and the remainder of the mean, so that the subtraction stays exact.
"""

from __future__ import annotations

import math

from ..._typing import Native
from .compiling import compiled

MEAN, SCALE, SHIFT, SLOPE, OFFSET = range(5)
"""Rows of a coefficient array."""


# ---- one channel


@compiled
def scale_and_shift(remainder: float, var: float, gamma: float, beta: float, eps: float) -> tuple[float, float]:
    """y = scale * (x - mean) + shift: the rounding of the mean is made good in the shift."""
    scale = gamma / math.sqrt(var + eps)
    return scale, beta - remainder * scale


@compiled
def sum_dy_xhat(sum_dy: float, sum_dy_x: float, remainder: float, var: float, eps: float) -> float:
    """sum(dy * xhat) from sum(dy) and sum(dy * (x - rounded mean))."""
    return (sum_dy_x - remainder * sum_dy) / math.sqrt(var + eps)


@compiled
def slope_and_offset(
    sum_dy: float, sum_dy_xhat: float, count: float, remainder: float, var: float, gamma: float, eps: float
) -> tuple[float, float]:
    """dx = scale * (dy - sum(dy) / n - xhat * sum(dy * xhat) / n), written as above."""
    inv_std = 1 / math.sqrt(var + eps)
    scale = gamma * inv_std
    slope = -scale * inv_std * sum_dy_xhat / count
    return slope, -scale * sum_dy / count - remainder * slope


@compiled
def normalized(x: float, mean: float, scale: float, shift: float, relu: bool) -> float:
    """y of one value, as the loops over vectors compute it."""
    y = (x - mean) * scale + shift
    return type(y)(0) if relu and y <= 0 else y


@compiled
def gradient(
    dy: float, x: float, mean: float, scale: float, shift: float, slope: float, offset: float, relu: bool
) -> float:
    """dx of one value."""
    t = x - mean
    d = type(dy)(0) if relu and t * scale + shift <= 0 else dy
    return d * scale + (t * slope + offset)


# ---- all channels; coefficients stand `length` times side by side, the whole as often as `out` has room


@compiled
def finish_moments(totals: Native, count: float, mean: Native, remainder: Native, var: Native) -> None:
    """Rounded mean, what that lost, and biased variance; rows of totals: mean, sum of squares about it."""
    for c in range(mean.size):
        mean[c] = totals[0, c]
        remainder[c] = totals[0, c] - mean[c]
        var[c] = totals[1, c] / count


@compiled
def line_coefficients(
    mean: Native, remainder: Native, var: Native, gamma: Native, beta: Native, eps: float, length: int, out: Native
) -> None:
    """Rows MEAN, SCALE and SHIFT of `out`, each channel's `length` times side by side."""
    for c in range(mean.size):
        scale, shift = scale_and_shift(remainder[c], var[c], gamma[c], beta[c], eps)
        out[MEAN, c] = mean[c]
        out[SCALE, c] = scale
        out[SHIFT, c] = shift
    for row in range(SHIFT + 1):
        _spread(out[row], mean.size, length)


@compiled
def _spread(row: Native, channels: int, length: int) -> None:
    """Each of the first `channels` values `length` times, then all that as often as there is room."""
    if length > 1:
        for c in range(channels - 1, -1, -1):
            v = row[c]
            for j in range(c * length, (c + 1) * length):
                row[j] = v
    pattern = channels * length
    for start in range(pattern, row.size, pattern):
        for j in range(min(pattern, row.size - start)):
            row[start + j] = row[j]


@compiled
def finish_sums(totals: Native, remainder: Native, var: Native, eps: float, sums: Native) -> None:
    """Rows sum(dy), sum(dy * xhat); rows of totals: sum(dy), sum(dy * (x - mean))."""
    for c in range(var.size):
        sums[0, c] = totals[0, c]
        sums[1, c] = sum_dy_xhat(totals[0, c], totals[1, c], remainder[c], var[c], eps)


@compiled
def gradient_coefficients(
    sums: Native, count: float, remainder: Native, var: Native, gamma: Native, eps: float, length: int, out: Native
) -> None:
    """Rows SLOPE and OFFSET of `out`, each channel's `length` times side by side."""
    for c in range(var.size):
        slope, offset = slope_and_offset(sums[0, c], sums[1, c], count, remainder[c], var[c], gamma[c], eps)
        out[SLOPE, c] = slope
        out[OFFSET, c] = offset
    for row in range(SLOPE, OFFSET + 1):
        _spread(out[row], var.size, length)


# ---- parts of an array, which are done one by one


@compiled
def merge_parts(counts: Native, parts: Native) -> None:
    """Add the statistics of all parts, (parts, 2, n), to those of part 0 (Chan, Golub and LeVeque 1979)."""
    done = counts[0]
    for part in range(1, counts.size):
        n = done + counts[part]
        weight = counts[part] / n
        between = done * weight
        for j in range(parts.shape[2]):
            d = parts[part, 0, j] - parts[0, 0, j]
            parts[0, 0, j] += d * weight
            parts[0, 1, j] += parts[part, 1, j] + d * d * between
        done = n


@compiled
def add_parts(parts: Native) -> None:
    """Add the sums of all parts, (parts, 2, n), to those of part 0."""
    for part in range(1, parts.shape[0]):
        for row in range(2):
            for j in range(parts.shape[2]):
                parts[0, row, j] += parts[part, row, j]
