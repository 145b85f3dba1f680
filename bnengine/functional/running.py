"""Running statistics: averages of batch statistics over training, for inference."""

from __future__ import annotations

from typing import Any, NamedTuple

from array_api_compat import array_namespace, device

from .._typing import Array
from ..arguments import instance, integer, number, one_of
from ..kernels import reference, select
from ..recording import live, made
from . import checks
from .moments import Moments, unbiased_factor
from .residuals import Residuals


class RunningStats(NamedTuple):
    """Averages of batch statistics over training, for inference with `normalize`.

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> x = np.asarray([[1.0], [3.0]])
    >>> running = bn.RunningStats.init(1, like=x)
    >>> y, residuals = bn.batch_norm(x)
    >>> running.update(residuals, momentum=0.5)  # variance: halfway from 1 to the unbiased 2
    RunningStats(mean=array([1.]), var=array([1.5]), batches=1)
    """

    mean: Array
    """Shape (C,), in the statistics dtype."""
    var: Array
    """Average of the variances, unbiased ones by default, shape (C,)."""
    batches: int
    """Updates so far."""

    @classmethod
    def init(cls, features: int, /, *, like: Array) -> RunningStats:
        """Mean 0 and variance 1 for each of `features` channels, in the library and on the device of `like`."""
        checks.floating("like", like)
        integer("features", features, 0, below=2**31)
        xp, place = array_namespace(like), device(like)
        dtype = reference.statistics_dtype(like)
        return cls(xp.zeros((features,), dtype=dtype, device=place), xp.ones((features,), dtype=dtype, device=place), 0)

    def update(
        self, batch: Residuals | Moments, /, *, momentum: float | None = 0.1, unbiased: bool = True
    ) -> RunningStats:
        """Average in the statistics of a batch.

        Parameters
        ----------
        batch : Residuals or Moments
            From `batch_norm`, or from `moments`.
        momentum : float or None
            The weight of the *new* batch, in [0, 1], as in PyTorch; Keras' and Flax's momentum is one minus
            it. None: the plain average over all batches so far.
        unbiased : bool
            Whether the batch's variance is taken unbiased, as PyTorch and Chainer take it, or as it normalises,
            as Keras, Flax and ONNX do.

        Returns
        -------
        RunningStats
            new = (1 - momentum) * old + momentum * batch, an unbiased variance being n / (n - 1) times
            the biased one that normalises, for weighted values with the sum of the weights as n. That is right for
            weights that count; for others n / (n - 1) is the factor all the same, and 2 at most.
        """
        if momentum is not None:
            number("momentum", momentum, 0, 1, words="None or a number in [0, 1]")
        instance("unbiased", unbiased, bool, "True or False")
        m, n = _statistics(batch)
        checks.like("batch", m.mean, self.mean, of="the running statistics")
        if m.mean.shape != self.mean.shape:
            raise ValueError(
                f"batch: expected statistics of shape {checks.shape(self.mean)}, got {checks.shape(m.mean)}"
            )
        weight = live(_share, self.batches) if momentum is None else momentum
        kernels = select(self.mean)
        factor = unbiased_factor(n) if unbiased else 1.0
        mean, var = made(kernels.blend, self.mean, self.var, m.mean, m.var, weight, factor)
        return RunningStats(mean, var, self.batches + 1)


def _share(batches: int) -> float:
    """The weight of one batch more in the plain average."""
    return 1 / (batches + 1)


def _statistics(batch: Any) -> tuple[reference.Moments, Any]:
    """Moments of a batch and how many values, or weights, they are of."""
    if isinstance(batch, Residuals):
        return batch.statistics, batch.count
    instance("batch", batch, Moments, "Residuals of batch_norm, or Moments")
    return reference.Moments(*batch[:3]), batch.weight


LIKE = {
    "torch": (1e-5, 0.1, True),
    "keras": (1e-3, 0.01, False),
    "flax": (1e-5, 0.01, False),
    "onnx": (1e-5, 0.1, False),
    "chainer": (2e-5, 0.1, True),
}
"""eps, weight of the new batch, whether running variances are unbiased: another library's layer made without settings."""


def like(library: str, /) -> dict[str, Any]:
    """What another library's batch normalisation does by default, as settings of `BatchNorm` in their meaning here.

    Parameters
    ----------
    library : {"torch", "keras", "flax", "onnx", "chainer"}

    Returns
    -------
    dict
        `eps`, `momentum`, the weight of the *new* batch, and `unbiased`, whether the running variance is the average
        of unbiased ones: for `BatchNorm` and `mlp(...).with_norms`. Running statistics are then those of the library
        after the same batches.

    Examples
    --------
    >>> import bnengine as bn
    >>> bn.like("keras")
    {'eps': 0.001, 'momentum': 0.01, 'unbiased': False}
    >>> bn.mlp([4, 64, 3]).with_norms(**bn.like("flax")).layers[1].momentum
    0.01
    """
    one_of("library", library, LIKE)
    eps, momentum, unbiased = LIKE[library]
    return {"eps": eps, "momentum": momentum, "unbiased": unbiased}
