"""The derivative of the backward pass, for penalties on gradients and for second-order methods."""

from __future__ import annotations

from typing import NamedTuple

from array_api_compat import array_namespace

from .._typing import Array
from ..arguments import instance
from ..kernels import reference
from . import checks
from .normalization import corrected, in_form_of
from .residuals import Residuals


class SecondGradients(NamedTuple):
    """Gradients of a function of the gradients of `batch_norm`."""

    dy: Array
    """By dy."""
    x: Array
    """By x."""
    gamma: Array | None
    """By gamma; None where it was None."""


def batch_norm_double_backward(
    ddx: Array, ddgamma: Array | None, ddbeta: Array | None, dy: Array, residuals: Residuals, /
) -> SecondGradients:
    r"""Gradients of `batch_norm_backward` by dy, x and gamma.

    For a function of (dx, dgamma, dbeta) whose gradients by them are ddx, ddgamma and ddbeta: the gradients of that
    function by what dx, dgamma and dbeta depend on. With shares :math:`p_i` (1 / n, or :math:`w_i / \sum w`), sums
    over i and :math:`s = 1 / \sqrt{\sigma^2 + \epsilon}`,

    .. math::
        A = \sum dy_i, \quad B = \sum dy_i \hat x_i, \quad a = \sum ddx_i \, p_i, \quad
        b = \sum ddx_i \, p_i \hat x_i, \quad K = \sum ddx_i \, dy_i - a A - b B

    .. math::
        ddy_i = \gamma s (ddx_i - a - b \hat x_i) + dd\gamma \, \hat x_i + dd\beta, \qquad d\gamma = s K

    .. math::
        e_i = (dd\gamma - \gamma s b) \, dy_i - \gamma s B p_i \, ddx_i, \qquad
        dx_i = s \Big( e_i - p_i \sum e_j - p_i \hat x_i \big( \sum e_j \hat x_j + \gamma s K \big) \Big)

    Parameters
    ----------
    ddx : array
        Gradient by dx, of x's shape.
    ddgamma, ddbeta : array, optional
        Gradients by dgamma and dbeta, in the shape of the parameter or (C,). None: 0.
    dy : array
        As it was given to `batch_norm_backward`.
    residuals : Residuals
        Of `batch_norm`, also with weights, statistics or all_reduce; not of `batch_renorm`.

    Returns
    -------
    SecondGradients
        `(dy, x, gamma)`. A fused ReLU has second derivative 0, so that its mask stays. Under `all_reduce`, the one by
        gamma is already that of the whole batch.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as described.

    Notes
    -----
    Array operations alone, about twenty passes over x: it is there to be right.

    References
    ----------
    The equations of S. Ioffe and C. Szegedy, 2015, arXiv:1502.03167, below algorithm 1, differentiated once more.

    Examples
    --------
    A penalty on the gradient, P = sum(dx^2):

    >>> import numpy as np, bnengine as bn
    >>> x, dy, gamma = np.asarray([[1.0], [2.0], [6.0]]), np.asarray([[1.0], [0.0], [0.5]]), np.ones(1)
    >>> y, residuals = bn.batch_norm(x, gamma)
    >>> dx = bn.batch_norm_backward(dy, residuals).x
    >>> ddy, dx2, dgamma = bn.batch_norm_double_backward(2 * dx, None, None, dy, residuals)
    >>> ddy.round(4)[:, 0], dx2.round(4)[:, 0], dgamma.round(4)
    (array([ 0.1837, -0.2296,  0.0459]), array([ 0.0361,  0.0066, -0.0426]), array([0.2066]))
    """
    r = residuals
    instance("residuals", r, Residuals, "those of batch_norm")
    if r.correction is not None:
        raise ValueError("residuals: expected those of batch_norm, got those of batch_renorm")
    checks.same_shape("ddx", ddx, r.x)
    checks.same_shape("dy", dy, r.x)
    one = _Sums(ddx, dy, r)
    ddgamma, ddbeta = (one.given(name, v) for name, v in (("ddgamma", ddgamma), ("ddbeta", ddbeta)))
    xp, dtype = one.xp, r.x.dtype
    scale = one.gamma * one.inv_std
    ddy = scale * (one.ddx - one.a - one.b * one.xhat) + ddgamma * one.xhat + ddbeta
    slope = ddgamma - scale * one.b
    e = slope * one.dy - scale * one.B * one.p * one.ddx
    sum_e, sum_e_xhat = slope * one.A - scale * one.B * one.a, slope * one.B - scale * one.B * one.b
    dx = one.inv_std * (e - one.p * sum_e - one.p * one.xhat * (sum_e_xhat + scale * one.K))
    if one.on is not None:
        ddy = xp.where(one.on, ddy, xp.zeros_like(ddy))
    dgamma = None if r.gamma is None else in_form_of(r.gamma, xp.reshape(one.inv_std * one.K, (-1,)))
    return SecondGradients(xp.astype(ddy, dtype), xp.astype(dx, dtype), dgamma)


class _Sums:
    """What the formulas take, in the statistics dtype, of a shape that broadcasts against x."""

    def __init__(self, ddx: Array, dy: Array, r: Residuals) -> None:
        xp = self.xp = array_namespace(r.x)
        self.r, affine, m = r, corrected(r), r.statistics
        x = xp.astype(r.x, m.mean.dtype)
        self.on = None if not affine.relu else ~(reference._line(x, m, affine, r.axis) <= 0)
        self.dy = reference._masked(dy, x, m, affine, r.axis)
        self.ddx = xp.astype(ddx, x.dtype)
        self.xhat = reference._normalized(x, m, r.axis, r.eps)
        self.p = (xp.ones_like(m.mean[:1]) if r.weights is None else r.weights) / r.count
        self.p = self.p if r.weights is not None else xp.reshape(self.p, (1,) * x.ndim)
        self.inv_std = self.along(reference._inv_std(m, r.eps))
        gamma = xp.ones_like(m.mean) if affine.gamma is None else xp.astype(affine.gamma, x.dtype)
        self.gamma = self.along(gamma)
        share = self.p * self.ddx
        of = (self.dy, self.dy * self.xhat, share, share * self.xhat, self.ddx * self.dy)
        sums = [xp.astype(reference._sum(v, r.axis), x.dtype) for v in of]
        if r.all_reduce is not None:
            total = xp.reshape(r.all_reduce(xp.concat(sums)), (5, -1))
            sums = [total[i, :] for i in range(5)]
        self.A, self.B, self.a, self.b, both = (self.along(v) for v in sums)
        self.K = both - self.a * self.A - self.b * self.B

    def along(self, v: Array) -> Array:
        return reference._along(v, self.r.x, self.r.axis)

    def given(self, name: str, v: Array | None) -> Array:
        """A gradient by a parameter's gradient; zeros for None."""
        v = checks.vector(name, v, self.r.x, self.r.axis)
        m = self.r.statistics.mean
        return self.along(self.xp.zeros_like(m) if v is None else self.xp.astype(v, m.dtype))
