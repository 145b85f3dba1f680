"""Arrays of the stand-in device: NumPy memory between margins, which count every value that goes to the host."""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Self

import numpy as np

MARGIN = 4096
"""Bytes before and after the values of an array; a kernel that writes there is found out."""

waiting_allowed = False
"""Whether values may go to the host: each such call waits for a device."""
events: list[str] = []
"""What the host and the device did, in order: "to host" where the host waited, and what others add."""

captured: list[Callable[[], None]] | None = None
"""The work of the graph that is captured; None where work runs at once."""

_buffers: list[tuple[weakref.ref[np.ndarray], int, int, np.generic]] = []
"""The bytes that arrays lie in, where the values start and stop, and what their margins are full of."""
_payloads = itertools.cycle(range(1, 64))
"""Of signalling NaNs: bfloat16 has six bits for them."""


class Device:
    """The one device, entered as CuPy's is; `entered` counts how deep."""

    entered = 0
    id = 0
    pci_bus_id = "none"
    mem_info = (2**20, 2**20)
    compute_capability: str
    attributes: dict[str, int]

    def __init__(self, number: int = 0) -> None:
        assert number in (0, 1), "one device, by two numbers"

    def __enter__(self) -> Self:
        Device.entered += 1
        return self

    def __exit__(self, *_: object) -> None:
        Device.entered -= 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device)

    __hash__ = object.__hash__


CHIPS = {
    "sm_60": ("60", 20, 48),
    "sm_75": ("75", 40, 64),
    "sm_80": ("80", 108, 163),
    "sm_90": ("90", 132, 227),
    "sm_90 without shared memory": ("90", 132, 2),
}
"""Compute capability, multiprocessors, and KiB of shared memory that a block may ask for."""


def use(chip: str) -> None:
    """Be that chip from now on."""
    Device.compute_capability, multiprocessors, shared = CHIPS[chip]
    limits = {"MaxSharedMemoryPerBlockOptin": shared * 1024, "L2CacheSize": 4096}
    Device.attributes = {"MultiProcessorCount": multiprocessors, **limits}


use("sm_90")


class ndarray(np.ndarray):  # noqa: N801  CuPy's name
    """An array on the device: values only leave it by `host` or, where waiting is allowed, by `get`."""

    @property
    def device(self) -> Device:  # type: ignore[override]
        return Device()

    @property
    def data(self) -> Any:  # type: ignore[override]
        return SimpleNamespace(ptr=self.ctypes.data)

    def __getitem__(self, key: Any) -> Any:
        """An array even where NumPy gives a number, as in CuPy."""
        found = super().__getitem__(key)
        return found if isinstance(found, np.ndarray) else np.asarray(found).view(ndarray)

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        """Arithmetic gives arrays, never numbers of NumPy."""
        return np.asarray(array).view(ndarray)

    def copy(self, order: Any = "C") -> Any:
        """A copy is queued on the current device."""
        refuse_off_device()
        return device(np.array(host(self), order=order))

    def get(self) -> np.ndarray:
        """The values on the host."""
        assert waiting_allowed, "a value was asked for on the host: on a device that waits"
        events.append("to host")
        return host(self).copy()

    def item(self, *_: object) -> Any:
        return self.get().item()

    def tolist(self) -> Any:
        return self.get().tolist()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    __index__ = __int__


ndarray.__module__ = "cupy"


def device(a: Any) -> Any:
    """A host array's values on the device, in the same layout."""
    a = np.asarray(a)
    if not a.flags.c_contiguous:
        return a.view(ndarray)
    there = _allocated(a.shape, a.dtype)
    there[...] = a
    return there


def host(a: Any) -> Any:
    """A device array's values on the host, without waiting: for the harness alone."""
    return a.view(np.ndarray)


def empty(shape: Any, dtype: Any) -> Any:
    """An array of NaN: what is not written shows."""
    refuse_off_device()
    return _allocated(shape, dtype)


def zeros(shape: Any, dtype: Any) -> Any:
    there = _allocated(shape, dtype)
    queue(lambda: there.fill(0))
    return there


def ones(shape: Any, dtype: Any) -> Any:
    return device(np.ones(shape, dtype))


def zeros_like(a: Any) -> Any:
    return device(np.zeros_like(host(a)))


def queue(work: Callable[[], None]) -> None:
    """Run the work, or keep it for the graph that is captured."""
    if captured is None:
        work()
    else:
        captured.append(work)


def refuse_off_device() -> None:
    assert Device.entered, "work was queued on whatever device is current, not on the array's own"


def check_margins(name: str) -> None:
    """Fail where a kernel has written beside an array."""
    _buffers[:] = [entry for entry in _buffers if entry[0]() is not None]
    for reference, start, stop, mark in _buffers:
        before, behind = _margins(reference(), start, stop, mark)
        assert (before == mark).all(), f"{name} wrote before an array"
        assert (behind == mark).all(), f"{name} wrote behind an array"


def _allocated(shape: Any, dtype: Any) -> Any:
    """Memory of NaN, at an address that is a multiple of 512 and more, as CuPy's are."""
    size = math.prod(np.atleast_1d(shape)) * np.dtype(dtype).itemsize
    buffer = np.full(size + 3 * MARGIN, 0xFF, np.uint8)
    start = MARGIN - buffer.ctypes.data % MARGIN + MARGIN
    mark = _mark(np.dtype(dtype))
    for margin in _margins(buffer, start, start + size, mark):
        margin.fill(mark)
    _buffers.append((weakref.ref(buffer), start, start + size, mark))
    if captured is not None:
        captured.append(lambda: buffer[:0].fill(0))  # the graph works on it after its array is gone
    return buffer[start : start + size].view(dtype).reshape(shape).view(ndarray)


def _margins(buffer: Any, start: int, stop: int, mark: np.generic) -> tuple[np.ndarray, np.ndarray]:
    """The memory before and behind an array, as its marks."""
    return buffer[start - MARGIN : start].view(mark.dtype), buffer[stop : stop + MARGIN].view(mark.dtype)


def _mark(dtype: np.dtype) -> np.generic:
    """The bits of a signalling NaN, or a large integer: read, it shows in results; no arithmetic gives it back.

    A quiet NaN goes through arithmetic as it is, so that what is read and written beyond an array would leave the
    same bits there. A payload for each array, so that a copy from margin to margin shows too.
    """
    bits, payload = np.dtype(f"u{dtype.itemsize}").type, next(_payloads)
    if dtype.kind in "biu":
        return bits(np.iinfo(bits).max - payload)
    return bits(np.array(np.inf, dtype).view(bits)[()] + bits(payload))
