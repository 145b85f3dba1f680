"""From a configuration value to a namespace, device and dtype. Nothing global: a backend is passed along."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, get_args

import numpy as np
from array_api_compat import is_cupy_array, is_dask_array, is_torch_array

from . import kernels
from ._typing import Array, BackendName, DTypeName, Library, Namespace
from .arguments import instance, one_of, shown

NAMES = get_args(Library)
"""Array libraries by the names that the command line takes."""

DTYPES = get_args(DTypeName)

_NAMESPACES = {
    "numpy": "array_api_compat.numpy",
    "cupy": "array_api_compat.cupy",
    "torch": "array_api_compat.torch",
    "jax": "jax.numpy",
    "dask": "array_api_compat.dask.array",
    "array-api-strict": "array_api_strict",
}
_INSTALL = {
    "cupy": "install the extra cuda12 or cuda13",
    "dask": "pip install 'dask[array]'",
    "array-api-strict": "pip install array-api-strict",
}


@dataclass(frozen=True)
class Backend:
    """An array library with a device and a floating dtype. Made by `backend`."""

    name: Library
    xp: Namespace
    device: Any
    """The library's own device object; None is its default."""
    dtype: Any
    """The library's own dtype object."""
    device_name: str | None = field(default=None, repr=False)
    """The device as `backend` was given it."""

    def __repr__(self) -> str:
        device = f", device={self.device_name!r}" if self.device_name else ""
        return f"backend({self.name!r}, dtype={self._dtype_name!r}{device})"

    @property
    def _dtype_name(self) -> DTypeName:
        return next(name for name in DTYPES if getattr(self.xp, name) == self.dtype)

    def __reduce__(self) -> tuple[Callable[..., Backend], tuple[Library, DTypeName, str | None]]:
        """By name: no module can be pickled, nor can every library's device."""
        return _named, (self.name, self._dtype_name, self.device_name)

    def asarray(self, host: Any, /) -> Array:
        """A host array on this backend: floating values in its dtype, integers as they are, or int32 without int64."""
        try:
            host = np.asarray(host)
        except ValueError as error:
            raise ValueError(f"host: expected an array, got {shown(host)}: {error}") from error
        if not host.flags.writeable:
            host = host.copy()  # PyTorch shares memory, and warns where it must not write
        if host.dtype.kind == "f":
            return self.xp.asarray(host, dtype=self.dtype, device=self.device)
        if host.dtype == np.int64 and not self._has_int64:
            if host.size and not -(2**31) <= host.min() <= host.max() < 2**31:
                raise ValueError(f"host: expected integers that fit in int32, {self.name} has no int64 here")
            host = host.astype(np.int32)
        return self.xp.asarray(host, device=self.device)

    @functools.cached_property
    def _has_int64(self) -> bool:
        return "int64" in self.xp.__array_namespace_info__().dtypes(device=self.device, kind="integral")

    def compiled(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """The step through `jax.jit` on JAX, unchanged elsewhere."""
        if self.name != "jax":
            return step
        import jax

        jitted: Callable[..., Any] = jax.jit(step)
        return jitted


def backend(name: BackendName = "auto", /, *, dtype: DTypeName = "float32", device: str | None = None) -> Backend:
    """The backend of that name.

    Parameters
    ----------
    name : str
        "numpy", "cupy", "torch", "jax", "dask", "array-api-strict", or "auto": CuPy where a GPU answers,
        else NumPy.
    dtype : {"float32", "float64"}
        Of parameters and data.
    device : str, optional
        In the library's own words: "cuda:1" (CuPy, PyTorch), "cpu" or "gpu:0" (JAX). None is its default.

    Returns
    -------
    Backend
        With `.xp`, `.device`, `.dtype` and `.asarray(host array)`.

    Raises
    ------
    ValueError
        For an unknown name, dtype or device, and for float64 on a JAX without x64.
    ImportError
        Where the library is not installed; the message says how to install it.

    Examples
    --------
    >>> import bnengine as bn
    >>> bn.backend("numpy", dtype="float64").asarray([1, 0.5])
    array([1. , 0.5])
    """
    one_of("backend name", name, get_args(BackendName))
    one_of("dtype", dtype, DTYPES)
    if device is not None:
        instance("device", device, str, "its name in the library's words")
    if name == "auto":
        name = "cupy" if unusable("cupy") is None else "numpy"
    reason = unusable(name)
    if reason is not None:
        raise ImportError(f"backend: {name} cannot be used here: {reason}")
    xp = importlib.import_module(_NAMESPACES[name])
    place = _device(name, device)
    if dtype not in _dtypes(xp, place):
        hint = "; set JAX_ENABLE_X64=1" if name == "jax" else ""
        raise ValueError(f"dtype: {name} has no {dtype} on device {device or 'default'}{hint}")
    return Backend(name, xp, place, getattr(xp, dtype), device)


def _named(name: Library, dtype: DTypeName, device: str | None) -> Backend:
    return backend(name, dtype=dtype, device=device)


def as_backend(given: Backend | BackendName | None) -> Backend:
    """A backend, one by name in float32, or NumPy's."""
    return given if isinstance(given, Backend) else backend("numpy" if given is None else given)


class Row(NamedTuple):
    """What `bnengine backends` says of a library."""

    name: str
    usable: bool
    version: str
    device: str
    fast_path: str
    why_not: str


def listed() -> list[Row]:
    """A row for each array library: usable or why not, version, default device, fast path."""
    return [_row(name) for name in NAMES]


def _row(name: Library) -> Row:
    reason = unusable(name)
    if reason is not None:
        return Row(name, False, "", "", "", reason)
    backend_ = backend(name)
    path, missing = "no fast path (array API)", []
    for fast in kernels.FAST.get(name, ()):
        reason = kernels.why_not(fast)
        if reason is None:
            path = fast
            break
        missing.append(f"no {fast}: {reason}; install the extra {kernels.EXTRAS[fast]}")
    path += f" ({', '.join(missing)})" if missing else ""
    device_of = backend_.xp.zeros((1,), device=backend_.device)
    version = importlib.import_module(name.replace("-", "_")).__version__
    return Row(name, True, version, _device_words(device_of), path, "")


@functools.cache
def unusable(name: str) -> str | None:
    """Why the library cannot be used here; None where it can."""
    try:
        importlib.import_module(name.replace("-", "_"))
        importlib.import_module(_NAMESPACES[name])
    except ImportError as error:
        return f"{error}; {_INSTALL.get(name, f'pip install {name}')}"
    if name == "cupy":
        import cupy

        if not cupy.is_available():
            return "CuPy is installed but no GPU answers"
    return None


def as_numpy(a: Any) -> np.ndarray[Any, Any]:
    """An array of any library as a NumPy array on the host; waits for the device."""
    if is_cupy_array(a):
        return np.asarray(a.get())
    if is_torch_array(a):
        return np.asarray(a.detach().cpu().numpy())
    if is_dask_array(a):
        return np.asarray(a.compute())
    if type(a).__module__.startswith("array_api_strict"):
        import array_api_strict

        a = array_api_strict.asarray(a, device=array_api_strict.Device("CPU_DEVICE"))
    return np.asarray(a)


def _device(name: str, device: str | None) -> Any:
    if device is None:
        return None
    try:
        if name == "torch":
            import torch

            torch.zeros(1, device=device)  # raises for what this machine does not have
            return torch.device(device)
        if name == "cupy":
            import cupy

            found = cupy.cuda.Device(int(device.removeprefix("cuda").removeprefix(":") or 0))
            _ = found.compute_capability  # raises where there is no such device
            return found
        if name == "jax":
            import jax

            platform, _, index = device.partition(":")
            return jax.devices(platform)[int(index or 0)]
        if name == "array-api-strict":
            import array_api_strict

            return array_api_strict.Device(device)
    except Exception as error:
        raise ValueError(f"device: {name} has no {device!r} here: {error}") from error
    if device != "cpu":
        raise ValueError(f"device: {name} has only 'cpu', got {device!r}")
    return None


def _dtypes(xp: Namespace, device: Any) -> dict[str, Any]:
    found: dict[str, Any] = xp.__array_namespace_info__().dtypes(device=device, kind="real floating")
    return found


def _device_words(a: Array) -> str:
    from array_api_compat import device

    return str(device(a)).removeprefix("array_api_strict.")
