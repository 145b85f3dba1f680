"""Batch renormalisation: batch statistics in training, corrected towards the running ones."""

from __future__ import annotations

from array_api_compat import array_namespace

from .._typing import AllReduce, Array, FusedActivation
from ..arguments import function, instance, number
from ..kernels import reference, select
from . import checks
from .normalization import affine_of, folded
from .ranks import batch_statistics
from .residuals import Residuals, version_of
from .running import RunningStats


def batch_renorm(
    x: Array,
    running: RunningStats,
    /,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    r_max: float = 3.0,
    d_max: float = 5.0,
    axis: int = 1,
    eps: float = 1e-5,
    activation: FusedActivation = None,
    all_reduce: AllReduce | None = None,
    weights: Array | None = None,
) -> tuple[Array, Residuals]:
    r"""Batch renormalisation: y as inference with the running statistics gives it, within bounds.

    .. math::
        y = \gamma \Big( \frac{x - \mu_B}{\sigma_B} r + d \Big) + \beta, \qquad
        r = \mathrm{clip}_{[1 / r_{max}, r_{max}]}\Big(\frac{\sigma_B}{\sigma}\Big), \qquad
        d = \mathrm{clip}_{[-d_{max}, d_{max}]}\Big(\frac{\mu_B - \mu}{\sigma}\Big)

    with batch statistics :math:`\mu_B`, :math:`\sigma_B = \sqrt{var_B + \epsilon}` and running ones :math:`\mu`,
    :math:`\sigma`. Where the bounds do not hold r and d back, y is that of `normalize` with the running statistics.

    Parameters
    ----------
    x : array
        As in `batch_norm`.
    running : RunningStats
        Before this batch; afterwards call ``running.update(residuals)``.
    gamma, beta, axis, eps, activation, all_reduce, weights
        As in `batch_norm`.
    r_max : float
        At least 1; with r_max 1 and d_max 0 this is `batch_norm`, as the paper begins training.
    d_max : float
        At least 0.

    Returns
    -------
    y : array
        Of x's shape, dtype, library and device.
    residuals : Residuals
        For `batch_norm_backward`, in which r and d are constants, as in the paper.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as described.

    Notes
    -----
    Cost: one pass more over x than `batch_norm`, since statistics and y are not fused.

    References
    ----------
    S. Ioffe, Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized Models, 2017,
    arXiv:1702.03275, algorithm 1.

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> x = np.asarray([[1.0], [3.0]])
    >>> running = bn.RunningStats(np.asarray([0.0]), np.asarray([4.0]), 10)
    >>> y, residuals = bn.batch_renorm(x, running)
    >>> np.testing.assert_allclose(y, bn.normalize(x, running.mean, running.var))
    >>> running = running.update(residuals, momentum=0.01)
    """
    axis = checks.features(x, axis)
    instance("running", running, RunningStats, "RunningStats")
    function("all_reduce", all_reduce)
    number("r_max", r_max, 1)
    number("d_max", d_max, 0)
    affine = affine_of(x, gamma, beta, axis, eps, activation)
    for name, value in zip(("running.mean", "running.var"), running[:2], strict=True):
        checks.vector(name, value, x, axis)
    kernels = select(x)
    weights, m, count = batch_statistics(kernels, x, axis, weights, None, all_reduce)
    correction = _correction(m, running.mean, running.var, affine.eps, float(r_max), float(d_max))
    line = reference.Affine(*folded(affine.gamma, affine.beta, *correction), affine.eps, affine.relu)
    y = kernels.normalize(x, m, line, axis)
    return y, Residuals(
        *(x, gamma, beta, m, count, axis, affine.eps, affine.relu, None, all_reduce, weights, correction, version_of(x))
    )


def _correction(
    m: reference.Moments, mean: Array, var: Array, eps: float, r_max: float, d_max: float
) -> tuple[Array, Array]:
    """r and d of each channel."""
    xp, dtype = array_namespace(mean), m.mean.dtype
    sigma = xp.sqrt(xp.astype(var, dtype) + eps)
    r = xp.sqrt(m.var + eps) / sigma
    d = ((m.mean - xp.astype(mean, dtype)) + m.remainder) / sigma
    return xp.clip(r, 1 / r_max, r_max), xp.clip(d, -d_max, d_max)
