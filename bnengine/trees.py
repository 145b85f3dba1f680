"""Nested dicts of arrays: parameters, gradients, running statistics, optimiser state.

Two trees are paired by key, never by position: `jax.jit` hands dicts back with their keys sorted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from array_api_compat import array_namespace, is_array_api_obj, is_dask_array

from ._typing import Tree
from .arguments import instance, shown


def leaves(tree: Tree, like: Tree | None = None, *, name: str = "tree") -> list[Any]:
    """The leaves of tree, in the key order of `like`; `name` is what a refusal calls the tree."""
    found: list[Any] = []
    instance(name, tree, dict, "a nested dict of arrays")
    if like is not None and tree.keys() != like.keys():
        wanted, got = (", ".join(map(str, keys)) for keys in (like, tree))
        raise ValueError(f"{name}: expected a tree with the keys {wanted} of the parameters, got {got}")
    for key, value in (tree if like is None else like).items():
        if isinstance(value, dict):
            found += leaves(tree[key], None if like is None else value, name=name)
        else:
            found.append(tree[key])
    return found


def names(tree: Tree) -> list[str]:
    """The keys of each leaf joined by dots ("1.gamma"), in the order of `leaves`."""
    return [name for name, _ in _items(tree, "")]


def flatten(tree: Tree) -> dict[str, Any]:
    """The leaves by name: {"1.gamma": ...}."""
    return dict(_items(tree, ""))


def unflatten(flat: dict[str, Any]) -> Tree:
    """The tree of a `flatten`."""
    tree: Tree = {}
    for name, value in flat.items():
        *parents, key = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[key] = value
    return tree


def rebuild(like: Tree, values: list[Any]) -> Tree:
    """A tree with the keys of `like` and these leaves, in the order of `leaves`."""
    return _rebuild(like, iter(values))


def check(name: str, tree: Any, wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse what is no tree with leaves of these names and shapes: floating arrays, or counts of shape ()."""
    instance(name, tree, dict, "a nested dict of arrays such as Sequential.init gives")
    found = {key: shape_of(leaf) for key, leaf in flatten(tree).items()}
    for key in [*wanted, *found]:
        if wanted.get(key) != found.get(key):
            raise ValueError(
                f"{name}: expected {key} of shape {wanted.get(key)} for this network, got {found.get(key)}"
            )


def shape_of(leaf: Any) -> tuple[int, ...] | str:
    """The shape of an array of numbers or of a count; of anything else, what it is."""
    if type(leaf) is int:
        return ()
    known = is_array_api_obj(leaf) and hasattr(leaf, "dtype") and not isinstance(leaf, type)
    kinds = ("real floating", "integral")
    return tuple(leaf.shape) if known and array_namespace(leaf).isdtype(leaf.dtype, kinds) else shown(leaf)


def map_leaves(function: Callable[[Any], Any], tree: Tree) -> Tree:
    """A tree of function(leaf)."""
    return {
        key: map_leaves(function, value) if isinstance(value, dict) else function(value) for key, value in tree.items()
    }


def copied(tree: Tree) -> Tree:
    """A tree that shares no memory with this one: what is donated later leaves it alone."""

    def copy(leaf: Any) -> Any:
        return array_namespace(leaf).asarray(leaf, copy=True) if is_array_api_obj(leaf) else leaf

    return map_leaves(copy, tree)


def settled(step: tuple[Tree, Tree, Tree, Any]) -> tuple[Tree, Tree, Tree, Any]:
    """What a step returns, computed where its arrays are lazy (dask): each step's graph would hold all before it."""
    if not is_dask_array(step[-1]):
        return step
    import dask

    return dask.persist(*step)


def _items(tree: Tree, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _items(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _rebuild(like: Tree, values: Iterator[Any]) -> Tree:
    return {key: _rebuild(value, values) if isinstance(value, dict) else next(values) for key, value in like.items()}
