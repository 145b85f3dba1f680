"""Type aliases. The array API has no common array type to check against, so an array is `Any`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

Array: TypeAlias = Any
"""An array of any library that follows the Python array API."""

Namespace: TypeAlias = Any
"""The array-API namespace of such a library."""

Tree: TypeAlias = dict[str, Any]
"""Nested dicts whose leaves are arrays or Python numbers."""

AllReduce: TypeAlias = Callable[[Array], Array]
"""Sums an array over ranks and gives every rank the sum."""
