"""The stand-in as a whole array library: programs that ask for CuPy get it, the command line included.

`install` replaces the module `cupy` and its array-API namespace, so it belongs in a process of its own. What the
namespace does is NumPy's work on the stand-in's arrays; the kernels are the real ones.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import array_api_compat.numpy
import numpy as np
from array_api_compat.common import _helpers as helpers

from . import memory, stand_in


class Namespace(ModuleType):
    """Array-API functions over the stand-in's arrays."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(array_api_compat.numpy, name)
        if isinstance(found, type) or not callable(found):
            return found

        def function(*args: Any, device: Any = None, **kwargs: Any) -> Any:
            return _there(found(*args, **kwargs))

        return function


class _Info:
    """What the namespace says of itself: NumPy's, whatever the device."""

    def dtypes(self, *, device: Any = None, kind: Any = None) -> Any:
        return np.__array_namespace_info__().dtypes(kind=kind)


def install() -> None:
    """Put the stand-in in CuPy's place for the rest of this process."""
    sys.modules["cupy"] = stand_in
    namespace = Namespace("array_api_compat.cupy")
    namespace.__array_namespace_info__ = _Info  # type: ignore[method-assign]
    stand_in.__getattr__ = namespace.__getattr__  # what the kernels do not need, programs on CuPy arrays may
    sys.modules["array_api_compat.cupy"] = namespace
    found = helpers._cls_to_namespace  # to which the stand-in's arrays are NumPy's, whose class they derive from

    def namespace_of(kind: type, *how: Any) -> Any:
        return (namespace, None) if issubclass(kind, memory.ndarray) else found(kind, *how)

    helpers._cls_to_namespace = namespace_of


def _there(found: Any) -> Any:
    """A result on the device."""
    if isinstance(found, list | tuple):
        return type(found)(map(_there, found))
    if isinstance(found, np.ndarray | np.generic) and not isinstance(found, memory.ndarray):
        return memory.device(found)
    return found
