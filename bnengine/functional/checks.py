"""What every public function asks of its arrays: checked once at the door, before any work."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, is_array_api_obj, is_dask_array, is_numpy_array, is_torch_array

from .._typing import Array, FusedActivation, Native
from ..arguments import shown
from ..kernels import library

UNIFORM = frozenset({"numpy", "cupy", "jax"})
"""Libraries of which every array is dense and of known shape."""

FLOATING = ("float16", "bfloat16", "float32", "float64")

# Dtypes already found to be floating, or integers, by array type: asking the namespace each time would cost more
# than a small kernel, and dtypes of two libraries must not be compared with each other.
_known: dict[type, set[object]] = {}
_integral: dict[type, set[object]] = {}
_varied: set[type] = set()


def floating(name: str, x: Array) -> None:
    """Refuse what is not a floating array of an array-API library: dense, without a mask, of known shape."""
    known = _known.get(type(x))
    if known is None or x.dtype not in known:
        _refuse_unless_floating(name, x)
        _known.setdefault(type(x), set()).add(x.dtype)
        if library(type(x)) not in UNIFORM:
            _varied.add(type(x))
    if type(x) in _varied:
        _refuse_unless_plain(name, x)


def _refuse_unless_floating(name: str, x: Array) -> None:
    kind = f"{type(x).__module__}.{type(x).__name__}".removeprefix("builtins.")
    if not is_array(x):
        raise TypeError(f"{name}: expected an array of an array-API library, got {kind}; convert it first")
    if (is_numpy_array(x) and type(x).__name__ == "matrix") or hasattr(x, "mask"):
        raise TypeError(f"{name}: expected a plain array, got {kind}; use numpy.asarray or fill the masked values")
    if dtype_name(x) not in FLOATING:
        raise TypeError(f"{name}: expected dtype {', '.join(FLOATING)} in native byte order, got {x.dtype}; cast it")
    _refuse_unless_complete(name, x)


def _refuse_unless_complete(name: str, x: Array) -> None:
    """Refuse an array whose library lacks what the kernels take for granted."""
    try:
        xp = array_namespace(x)
        _ = xp.float64, xp.__array_namespace_info__()
    except (AttributeError, RuntimeError) as error:
        words = f"with float64 and the array API of 2023.12, got {library(type(x))} ({error})"
        raise TypeError(f"{name}: expected an array of a library {words}; convert it first") from error


def _refuse_unless_plain(name: str, x: Native) -> None:
    """Refuse what a type alone does not tell: chunks that are masked, memory that is sparse, a shape not known yet."""
    if is_dask_array(x) and hasattr(x._meta, "mask"):
        raise TypeError(f"{name}: expected plain chunks, got masked ones; fill the masked values")
    if is_torch_array(x) and (str(x.layout) != "torch.strided" or x.is_nested):
        raise TypeError(f"{name}: expected a dense tensor, got layout {x.layout}; use to_dense() or a padded tensor")
    if any(n is None or n != n for n in x.shape):  # noqa: PLR0124  # dask says NaN, the standard None
        hint = "; call x.compute_chunk_sizes() first" if is_dask_array(x) else ""
        raise ValueError(f"{name}: expected a known shape, got {shape(x)}{hint}")


def integral(name: str, x: Array, wanted: str) -> None:
    """Refuse what is not an integer array of an array-API library."""
    known = _integral.get(type(x))
    if known is not None and x.dtype in known:
        return
    if not is_array(x):
        raise TypeError(f"{name}: expected an integer array, got {type(x).__name__}")
    if not array_namespace(x).isdtype(x.dtype, "integral"):
        raise TypeError(f"{name}: expected an integer dtype ({wanted}), got {x.dtype}")
    if not hasattr(array_namespace(x), "arange"):
        raise TypeError(f"{name}: expected an array of a library with arange, got {library(type(x))}; convert it first")
    _integral.setdefault(type(x), set()).add(x.dtype)


def is_array(x: Any) -> bool:
    """Whether it is an array of an array-API library; a type, which has the same attributes, is none."""
    return is_array_api_obj(x) and hasattr(x, "dtype") and not isinstance(x, type)


def dtype_name(x: Array) -> str:
    """The name without its library's: "float32"."""
    return str(x.dtype).rpartition(".")[2]


def like(name: str, v: Array, x: Array, *, of: str = "x") -> None:
    """Refuse v unless it is of the library and on the device of x."""
    if type(v) is type(x) and _beside(v, x):
        return
    if not is_array(v) or array_namespace(v) is not array_namespace(x):
        raise TypeError(
            f"{name}: expected an array of {library(type(x))} like {of}, got {library(type(v))}; convert one of them"
        )
    here, there = device(v), device(x)
    if here != there and here is not None and there is not None:  # None: traced by JAX
        raise ValueError(f"{name}: expected device {there} like {of}, got {here}; move one of them")


def _beside(v: Native, x: Native) -> bool:
    """Whether two arrays of one type are known at once to be on one device: asking their library takes 4 us."""
    kind = library(type(x))
    return kind == "numpy" or (kind == "cupy" and bool(v.device == x.device))


def vector(name: str, v: Array | None, x: Array, axis: int) -> Array | None:
    """v as shape (C,), given so or in the keepdims shape."""
    if v is None:
        return None
    c = x.shape[axis]
    if type(v) is np.ndarray is type(x) and v.dtype is x.dtype and v.shape == (c,):  # nearly always, and soon said
        return v
    floating(name, v)
    like(name, v, x)
    if v.shape == (c,):
        return v
    kept = tuple(c if i == axis else 1 for i in range(x.ndim))
    if tuple(v.shape) != kept:
        raise ValueError(f"{name}: expected shape {(c,)} or {kept} for x of shape {shape(x)}, got {tuple(v.shape)}")
    return array_namespace(v).reshape(v, (c,))


def features(x: Array, axis: Any) -> int:
    """Refuse x unless it is floating, of known shape and rank 2 or more; return its feature axis, not negative."""
    floating("x", x)
    if x.ndim < 2:
        raise ValueError(f"x: expected rank 2 or more (samples and features), got shape {shape(x)}")
    if type(axis) is not int:
        raise TypeError(f"axis: expected an int, got {shown(axis)}")
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis: expected -{x.ndim} to {x.ndim - 1} for x of shape {shape(x)}, got {axis}")
    return int(axis % x.ndim)


def epsilon(eps: Any) -> float:
    """Refuse an eps that would not keep a constant channel finite in float32."""
    if not isinstance(eps, float | Real):  # float first: the abstract class alone takes half a microsecond
        raise TypeError(f"eps: expected a number, got {shown(eps)}")
    if not 1.2e-38 <= float(eps) < math.inf:  # the smallest normal float32
        raise ValueError(f"eps: expected a positive, finite number of at least 1.2e-38, got {eps!r}")
    return float(eps)


def fused_relu(activation: FusedActivation) -> bool:
    """Whether the fused activation is ReLU."""
    if activation is None:
        return False
    if type(activation) is not str or activation != "relu":
        raise ValueError(
            f"activation: expected None or 'relu', got {shown(activation)}; apply other activations to the result"
        )
    return True


def same_shape(name: str, v: Array, x: Array, *, of: str = "x") -> None:
    """Refuse v unless it is a floating array of x's shape, library and device."""
    floating(name, v)
    like(name, v, x, of=of)
    if v.shape != x.shape:
        raise ValueError(f"{name}: expected shape {shape(x)} like {of}, got {shape(v)}")


def shape(x: Array) -> tuple[int, ...]:
    """The shape as a plain tuple, for messages."""
    return tuple(x.shape)
