"""Batch normalisation: the public functions. Check once, select kernels, call them."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace

from .._typing import AllReduce, Array, FusedActivation, Implementation
from ..arguments import function, instance
from ..kernels import reference, select
from ..kernels.reference import Affine
from ..recording import made
from . import checks
from .moments import Moments
from .ranks import batch_statistics, refuse_too_few
from .residuals import Gradients, Residuals, version_of


def batch_norm(
    x: Array,
    /,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    axis: int = 1,
    eps: float = 1e-5,
    activation: FusedActivation = None,
    all_reduce: AllReduce | None = None,
    impl: Implementation | None = None,
    weights: Array | None = None,
    statistics: Moments | None = None,
) -> tuple[Array, Residuals]:
    r"""Normalise each channel of x with the statistics of this batch, then scale and shift it.

    .. math::
        y = \gamma \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta, \qquad
        \mu = \frac{1}{n} \sum_i x_i, \qquad \sigma^2 = \frac{1}{n} \sum_i (x_i - \mu)^2

    Parameters
    ----------
    x : array
        Any shape of rank 2 or more; float16, bfloat16, float32 or float64 of any array-API library.
    gamma, beta : array, optional
        Learned scale and shift, of shape (C,) or the keepdims shape such as (C, 1). None: 1 and 0.
    axis : int
        The feature axis: 1 for (N, D) and (N, C, H, W), -1 for channels-last, 0 for samples as columns.
    eps : float
        Added to the variance.
    activation : {None, "relu"}
        Applied to y in the same pass; the backward pass applies its mask.
    all_reduce : callable, optional
        Sums an array over ranks and gives every rank the sum. Statistics and gradients then are those of
        the whole batch, for shares of any size, empty ones included. Each call reads the batch's count
        on the host.
    impl : str, optional
        None chooses; "reference" or the name of a fast module (those of each library are listed in
        `bnengine.kernels.FAST`) forces one implementation or raises saying why it cannot run.
    weights : array, optional
        As in `moments`: a weight of k stands for the value k times, 0 for padding. y is computed everywhere.
        The gradients are those of this y; where the loss is weighted too, dy carries the weight, as it does in
        `train_step`.
    statistics : Moments, optional
        Of the whole batch, of which x is a part: merged over the parts of a batch (gradient accumulation) or over
        clients. They take the place of x's own, and in the backward pass too they are the statistics of a batch
        that holds x; for statistics that do not depend on x, use `normalize`.

    Returns
    -------
    y : array
        Of x's shape, dtype, library and device.
    residuals : Residuals
        For `batch_norm_backward`; `mean`, `var` (biased) and `count` are readable.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as described, or a channel has fewer than two values over all ranks.

    Notes
    -----
    Statistics are computed in two passes about the mean, sums in float64 where the library and device
    have it, and the mean is carried as two numbers: y is within 1e-6 of its largest value of a float64
    computation for float32 input at any mean/std up to 1e6. A constant channel gives beta exactly.
    NaN or infinity in one channel stays there. Cost: x is read two to five times and y written once;
    fused implementations read x from cache after the first pass.

    The backward pass reads x again. If x is changed in place in between, the gradient is wrong: for PyTorch
    tensors `batch_norm_backward` raises, as autograd does; no other library counts changes, so there it
    goes unseen. Give it a copy where the buffer of a batch is used again.

    References
    ----------
    S. Ioffe and C. Szegedy, Batch Normalization, 2015, arXiv:1502.03167, algorithm 1.

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> y, residuals = bn.batch_norm(np.asarray([[1.0, 10.0], [3.0, 30.0]]))
    >>> y.round(3)
    array([[-1., -1.],
           [ 1.,  1.]])
    >>> residuals.mean, residuals.var, residuals.count
    (array([ 2., 20.]), array([  1., 100.]), 2)
    """
    axis = checks.features(x, axis)
    affine = affine_of(x, gamma, beta, axis, eps, activation)
    function("all_reduce", all_reduce)
    if impl is not None:
        instance("impl", impl, str, "None or the name of an implementation")
    kernels = select(x, impl)
    if weights is None and statistics is None and all_reduce is None:
        count: Any = reference._count(x, axis)
        refuse_too_few(count, x)
        y, m = made(kernels.forward, x, affine, axis)
    else:
        weights, m, count = batch_statistics(kernels, x, axis, weights, statistics, all_reduce)
        y = kernels.normalize(x, m, affine, axis)
    return y, Residuals(
        *(x, gamma, beta, m, count, axis, affine.eps, affine.relu, impl, all_reduce, weights, None, version_of(x))
    )


def batch_norm_backward(dy: Array, residuals: Residuals, /) -> Gradients:
    r"""Gradients of `batch_norm` by x, gamma and beta.

    .. math::
        d\beta = \sum_i dy_i, \qquad d\gamma = \sum_i dy_i \hat{x}_i, \qquad
        dx = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}}
             \left( dy - \frac{d\beta}{n} - \hat{x} \frac{d\gamma}{n} \right)

    Parameters
    ----------
    dy : array
        Gradient of the loss by y, of x's shape. With a fused ReLU it is masked here.
    residuals : Residuals
        From the forward pass.

    Returns
    -------
    Gradients
        `(dx, dgamma, dbeta)`, also by the names x, gamma, beta. Under `all_reduce`, dx is exact for the
        whole batch, and dgamma and dbeta are this rank's share: sum them with the other parameters'
        gradients.

    Raises
    ------
    TypeError, ValueError
        Where dy is not an array of x's library, device and shape, or x, a PyTorch tensor, was changed in place
        since the forward pass.

    Notes
    -----
    Where activation is "relu" the mask is recomputed from x. Cost: x and dy are read twice, dx is
    written once.

    References
    ----------
    S. Ioffe and C. Szegedy, 2015, arXiv:1502.03167, section 3, the equations below algorithm 1.

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> x = np.asarray([[1.0], [2.0], [6.0]])
    >>> y, residuals = bn.batch_norm(x, np.ones(1), np.zeros(1))
    >>> dx, dgamma, dbeta = bn.batch_norm_backward(np.asarray([[1.0], [0.0], [0.0]]), residuals)
    >>> dx.round(4)[:, 0], dgamma.round(4), dbeta
    (array([ 0.1763, -0.2204,  0.0441]), array([-0.9258]), array([1.]))
    """
    r = residuals
    instance("residuals", r, Residuals, "those of batch_norm")
    if r.version is not None and (version_of(r.x) or 0) > r.version:
        raise ValueError(
            "residuals: expected x as batch_norm was given it, but it was changed in place; give it a copy"
        )
    checks.same_shape("dy", dy, r.x)
    affine = corrected(r)
    kernels, m = select(r.x, r.impl), r.statistics
    if r.all_reduce is None and r.weights is None and isinstance(r.count, int):  # of x alone
        dx, sums = made(kernels.backward, dy, r.x, m, affine, r.axis)
    else:
        total = sums = kernels.gradient_sums(dy, r.x, m, affine, r.axis)
        if r.all_reduce is not None:
            xp = array_namespace(r.x)
            both = xp.reshape(r.all_reduce(xp.concat(sums)), (2, -1))
            total = both[0, :], both[1, :]
        if r.weights is None:
            dx = kernels.input_gradient(dy, r.x, m, total, r.count, affine, r.axis)
        else:
            dx = kernels.weighted_gradient(dy, r.x, m, total, r.weights, r.count, affine, r.axis)
    if r.correction is not None:  # the kernels see y = (gamma * r) * xhat + (beta + gamma * d)
        scale, shift = r.correction
        sums = sums[0], scale * sums[1] + shift * sums[0]
    return _gradients(dx, sums, r.gamma, r.beta)


def corrected(r: Residuals) -> Affine:
    """The affine parameters as the kernels saw them: with r and d of renormalisation folded in, where there are any."""
    gamma, beta = _flat(r.gamma), _flat(r.beta)
    return Affine(*(gamma, beta) if r.correction is None else folded(gamma, beta, *r.correction), r.eps, r.relu)


def folded(gamma: Array | None, beta: Array | None, scale: Array, shift: Array) -> tuple[Array, Array]:
    """gamma and beta of y = gamma * (scale * xhat + shift) + beta as one line in xhat."""
    xp = array_namespace(scale)
    g = xp.ones_like(scale) if gamma is None else xp.astype(gamma, scale.dtype)
    return g * scale, g * shift if beta is None else xp.astype(beta, scale.dtype) + g * shift


def normalize(
    x: Array,
    /,
    mean: Array,
    var: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    axis: int = 1,
    eps: float = 1e-5,
    activation: FusedActivation = None,
) -> Array:
    """Normalise x with given statistics: inference, and layers whose statistics are frozen.

    y = gamma * (x - mean) / sqrt(var + eps) + beta, the call that other libraries name
    `batch_normalization`.

    Parameters
    ----------
    x, gamma, beta, axis, eps, activation
        As in `batch_norm`.
    mean, var : array
        Statistics of each channel, of shape (C,) or the keepdims shape. A float64 mean beside a float32
        x keeps its precision.

    Returns
    -------
    array
        y, of x's shape, dtype, library and device.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as described.

    Notes
    -----
    One pass over x. With a float32 mean at mean/std 1e6, y is up to 0.03 off: half a unit in the last
    place of such a mean is 0.03 standard deviations.

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> bn.normalize(np.asarray([[5.0, 0.0]]), np.asarray([3.0, 0.0]), np.asarray([4.0, 1.0]), eps=1e-12)
    array([[1., 0.]])
    """
    axis = checks.features(x, axis)
    kernels = select(x)
    m, affine = _given(kernels, x, mean, var, axis), affine_of(x, gamma, beta, axis, eps, activation)
    y: Array = made(kernels.normalize, x, m, affine, axis)
    return y


def normalize_backward(
    dy: Array,
    x: Array,
    /,
    mean: Array,
    var: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    axis: int = 1,
    eps: float = 1e-5,
    activation: FusedActivation = None,
) -> Gradients:
    """Gradients of `normalize` by x, gamma and beta, for statistics that do not depend on x.

    dx = gamma / sqrt(var + eps) * dy,  dgamma = sum(dy * xhat),  dbeta = sum(dy).

    Parameters
    ----------
    dy : array
        Gradient of the loss by y, of x's shape.
    x, mean, var, gamma, beta, axis, eps, activation
        As they were given to `normalize`.

    Returns
    -------
    Gradients
        `(dx, dgamma, dbeta)`.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as described.

    Notes
    -----
    Two passes over x and dy.

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> mean, var, gamma = np.asarray([3.0]), np.asarray([4.0]), np.asarray([6.0])
    >>> dx, dgamma, _ = bn.normalize_backward(np.ones((1, 1)), np.asarray([[5.0]]), mean, var, gamma, eps=1e-12)
    >>> dx.round(6), dgamma.round(6)
    (array([[3.]]), array([1.]))
    """
    axis = checks.features(x, axis)
    checks.same_shape("dy", dy, x)
    kernels = select(x)
    m, affine = _given(kernels, x, mean, var, axis), affine_of(x, gamma, beta, axis, eps, activation)
    sums = made(kernels.gradient_sums, dy, x, m, affine, axis)
    dx = made(kernels.given_gradient, dy, x, m, affine, axis)
    return _gradients(dx, sums, gamma, beta)


def _given(kernels: Any, x: Array, mean: Array, var: Array, axis: int) -> reference.Moments:
    """Given statistics as moments, checked."""
    m, v = checks.vector("mean", mean, x, axis), checks.vector("var", var, x, axis)
    if m is None or v is None:
        raise TypeError(f"{'mean' if m is None else 'var'}: expected an array, got None")
    moments: reference.Moments = kernels.given(m, v, x)
    return moments


def affine_of(
    x: Array, gamma: Array | None, beta: Array | None, axis: int, eps: float, activation: FusedActivation
) -> Affine:
    """The arguments of a public function as the kernels take them, checked."""
    eps, relu = checks.epsilon(eps), checks.fused_relu(activation)
    return Affine(checks.vector("gamma", gamma, x, axis), checks.vector("beta", beta, x, axis), eps, relu)


def _flat(v: Array | None) -> Array | None:
    return v if v is None or v.ndim == 1 else array_namespace(v).reshape(v, (-1,))


def _gradients(dx: Array, sums: tuple[Array, Array], gamma: Array | None, beta: Array | None) -> Gradients:
    sum_dy, sum_dy_xhat = sums
    return Gradients(dx, _of(sum_dy_xhat, gamma), _of(sum_dy, beta))


def _of(v: Array, parameter: Array | None) -> Array | None:
    return None if parameter is None else in_form_of(parameter, v)


def in_form_of(parameter: Array, v: Array) -> Array:
    """v in the parameter's dtype and shape."""
    if v.dtype != parameter.dtype:
        v = array_namespace(v).astype(v, parameter.dtype)
    return v if v.shape == parameter.shape else array_namespace(v).reshape(v, parameter.shape)
