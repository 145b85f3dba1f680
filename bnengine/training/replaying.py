"""Steps on NumPy arrays that are recorded once for each shape of batch, and then replayed."""

from __future__ import annotations

import itertools
import operator
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from .. import trees
from .._typing import Native, Tree
from ..recording import Changing, Program, Recorder, UnrecordableError, Witness, root_of, same
from .finite import Step

SHAPES = 4
"""Recordings that are kept: one for each shape of batch."""

IDLE = 8
"""Steps on other arrays in a row, after which the recordings make room for these."""

UNUSED = 1000
"""Steps after which the recording of a shape makes room for that of another."""

REMEMBERED = 64
"""Shapes of batches, at most, of which it is remembered that they came, or cannot be recorded."""

Trees: TypeAlias = tuple[Tree, Tree, Tree]
"""params, state and opt_state"""

Made: TypeAlias = tuple[Tree, Tree, Tree, Native]
"""What a step gives: the trees and the loss."""


class Recorded:
    """A step on NumPy arrays that is recorded for the shapes of batches that come more than once.

    Recordings are bound to the arrays of one network, `Home`. Whatever else comes is done by the step itself.
    """

    def __init__(self, step: Step) -> None:
        self.step = step
        self.why_not: str | None = "no batch of the same shape has come twice yet"
        self._lock = threading.Lock()
        self._home: Home | None = None
        self._away = 0
        self._number = True  # whether the loss of the step is a number of NumPy's, and no array

    @property
    def replays(self) -> bool:
        """Whether there is a recording that was found to be right."""
        home = self._home
        return home is not None and any(shape.checked for shape in list(home.shapes.values()))

    def __call__(self, params: Tree, state: Tree, opt_state: Tree, *batch: Any) -> Made:
        """As the step: by a recording, by making one, or by the step itself."""
        # Not waited for: a schedule may call this step, and a forked child may find the lock taken for ever.
        if not self._lock.acquire(blocking=False):
            return self.step(params, state, opt_state, *batch)
        try:
            home, given = self._home, (params, state, opt_state)
            if home is None or not home.holds(given):
                return self._elsewhere(given, batch)
            self._away = 0
            return self._at_home(home, batch)
        finally:
            self._lock.release()

    def _at_home(self, home: Home, batch: tuple[Any, ...]) -> Made:
        shape = home.shape(batch)
        if shape is None or shape.refused:
            return home.taken(self.step(*home.trees, *batch))
        try:
            if shape.checked:
                return *home.trees, shape.replay(batch)
            return *home.trees, self._check(home, shape, batch) if shape.replay else self._record(home, shape, batch)
        except UnrecordableError as error:  # raised before anything is written home
            self.why_not = shape.refused = str(error)
            shape.replay, shape.checked = None, False
            return home.taken(self.step(*home.trees, *batch))

    def _elsewhere(self, given: Trees, batch: tuple[Any, ...]) -> Made:
        """A step on other arrays; those that it gives are home from then on, where no others are in use."""
        *made, loss = self.step(*given, *batch)
        self._away, self._number = self._away + 1, isinstance(loss, np.generic)
        if self._away > IDLE or (self._home is None and self._away == 1):
            self._away = 1
            try:
                self._home = Home((made[0], made[1], made[2]))
                self._home.shape(batch)
            except UnrecordableError as error:
                self._home, self.why_not = None, str(error)
        return made[0], made[1], made[2], loss

    def _record(self, home: Home, shape: _Shape, batch: tuple[Any, ...]) -> Native:
        """The step, noted; where it cannot be, or raises, home is left as it was."""
        home.make_room()
        before, recorder = [a.copy() for a in home.arrays], Recorder()
        try:
            shape.replay = _Replay(recorder, self.step, home, batch, number=self._number)
        except BaseException as error:
            for array, old in zip(home.arrays, before, strict=True):
                np.copyto(array, old)
            if isinstance(error, UnrecordableError) or not isinstance(error, Exception):
                raise
            if recorder.raised is not None and recorder.raised in (error, error.__cause__):
                raise
            raise UnrecordableError(f"{type(error).__name__}: {error}") from error  # the step itself may raise it again
        return shape.replay.value()

    def _check(self, home: Home, shape: _Shape, batch: tuple[Any, ...]) -> Native:
        """The first replay, and the same by the step, which is what counts."""
        witness = Witness()
        *expected, loss = witness.listen(self.step, *map(trees.copied, home.trees), *batch)
        own = witness.answer(shape.replay, batch)
        wanted = [leaf for tree, like in zip(expected, home.trees, strict=True) for leaf in trees.leaves(tree, like)]
        if witness.differs or not same([*wanted, loss], [*_leaves(home.trees), own]):
            home.taken((*expected, loss))
            self.why_not = shape.refused = "a replay did not give the same bits"
            shape.replay = None
            return loss
        self.why_not, shape.checked = None, True
        return loss


class _Shape:
    """What is known of batches of one shape."""

    def __init__(self) -> None:
        self.replay: Any = None
        self.checked = False
        """Whether the replay was found to be right."""
        self.refused = ""
        """Why there is none."""
        self.used = 0
        """Number of the step that used it last."""


class Home:
    """The arrays of one network and its optimiser, which recordings are bound to, in dicts of our own."""

    def __init__(self, given: Trees) -> None:
        self.shapes: dict[Any, _Shape] = {}
        self._steps = 0
        self.arrays = [leaf for leaf in _leaves(given) if type(leaf) is not int]
        if not all(_is_plain(a) and a.dtype.kind == "f" for a in self.arrays):
            raise UnrecordableError("a parameter or a part of the state is no plain, writable floating array")
        places = sorted((a.__array_interface__["data"][0], a.nbytes) for a in self.arrays if a.size)
        if any(start + size > following for (start, size), (following, _) in itertools.pairwise(places)):
            raise UnrecordableError("parameters or parts of the state share memory")
        self._own(given)

    def _own(self, given: Trees) -> None:
        """Take new dicts: what is done to those that were handed out before is the user's affair."""
        params, state, opt_state = (trees.map_leaves(lambda leaf: leaf, tree) for tree in given)
        self.trees: Trees = params, state, opt_state
        self._nodes = [node for tree in self.trees for node in _nodes(tree)]
        self._size = sum(map(len, self._nodes))
        self._owned = [
            (node, key, value) for node in self._nodes for key, value in node.items() if type(value) is not int
        ]
        self._counts = [(node, key) for tree in self.trees for node, key, leaf in _places(tree) if type(leaf) is int]

    def holds(self, given: Trees) -> bool:
        """Whether these trees hold the arrays of home; their counts may be others."""
        if all(map(operator.is_, given, self.trees)) and self._unchanged():
            return True
        try:
            pairs = zip(given, self.trees, strict=True)
            found = [trees.rebuild(own, trees.leaves(tree, own)) for tree, own in pairs]
        except (AttributeError, KeyError, TypeError, ValueError):  # the step knows what to say of it
            return False
        leaves = _leaves(found)
        arrays = [leaf for leaf in leaves if type(leaf) is not int]
        if len(arrays) != len(self.arrays) or not all(map(operator.is_, arrays, self.arrays)):
            return False
        if len(leaves) - len(arrays) != len(self._counts):
            return False
        self._own((found[0], found[1], found[2]))
        return True

    def _unchanged(self) -> bool:
        """Whether nobody has changed the dicts that were handed out."""
        for node, key, value in self._owned:
            if node.get(key) is not value:
                return False
        return sum(map(len, self._nodes)) == self._size and set(map(type, self.counts)) <= {int}

    @property
    def counts(self) -> list[Any]:
        """How far the step, and whatever else is counted, has come."""
        return [node.get(key) for node, key in self._counts]

    @counts.setter
    def counts(self, values: Iterable[int]) -> None:
        for (node, key), value in zip(self._counts, values, strict=True):
            node[key] = value

    def taken(self, made: Made) -> Made:
        """What the step gave, brought home; as it is, if it does not fit there."""
        *new, loss = made
        try:
            leaves = [leaf for tree, own in zip(new, self.trees, strict=True) for leaf in trees.leaves(tree, own)]
        except (TypeError, ValueError):
            return made
        places = [place for tree in self.trees for place in _places(tree)]
        moved = [(leaf, own) for leaf, (_, _, own) in zip(leaves, places, strict=True) if leaf is not own]
        if not all(_alike(leaf, own) and not self.lies_in(leaf) for leaf, own in moved):
            return made
        self.counts = [leaf for leaf in leaves if type(leaf) is int]
        for leaf, own in moved:
            if type(leaf) is not int:
                np.copyto(own, leaf)
        return *self.trees, loss

    def lies_in(self, leaf: Any) -> bool:
        """Whether it lies in memory of home."""
        return isinstance(leaf, np.ndarray) and any(root_of(leaf) is root_of(a) for a in self.arrays)

    def shape(self, batch: tuple[Any, ...]) -> _Shape | None:
        """What is known of such batches; None where none has come before, or this one cannot be read as it is."""
        self._steps += 1
        for a in batch:
            if a is not None and not _is_plain(a):
                return None
        key = tuple([a if a is None else (a.shape, a.dtype) for a in batch])
        shape = self.shapes.get(key)
        if shape is not None:
            shape.used = self._steps
            return shape
        if len(self.shapes) >= REMEMBERED:
            self.shapes = {key: shape for key, shape in self.shapes.items() if shape.replay}
        self.shapes[key] = _Shape()
        return None

    def make_room(self) -> None:
        """Drop a recording that has not been used for long; without one there is no room for another."""
        kept = [(shape.used, key) for key, shape in self.shapes.items() if shape.replay]
        if len(kept) < SHAPES:
            return
        used, key = min(kept, key=operator.itemgetter(0))
        if self._steps - used < UNUSED:
            raise UnrecordableError(f"batches of {SHAPES} other shapes are recorded already")
        del self.shapes[key]


class _Replay:
    """The recording of a step on batches of one shape, made by doing that step."""

    def __init__(self, recorder: Recorder, step: Step, home: Home, batch: tuple[Any, ...], *, number: bool) -> None:
        inputs = [None if a is None else a.copy() for a in batch]
        for a in (*home.arrays, *inputs):
            if a is not None:
                recorder.know(a)
        self.home, self.number = home, number
        self._starts = [Changing(count) for count in home.counts]
        counts = iter(self._starts)
        given = [
            trees.map_leaves(lambda leaf: next(counts) if type(leaf) is int else leaf, tree) for tree in home.trees
        ]
        *made, self.loss = recorder.record(step, *given, *inputs)
        if not (isinstance(self.loss, np.ndarray) and self.loss.shape == () and recorder.knows(self.loss)):
            raise UnrecordableError("the loss is made outside the recording")
        leaves = [leaf for tree, own in zip(made, home.trees, strict=True) for leaf in trees.leaves(tree, own)]
        self._ends: list[Changing] = []
        for leaf, own in zip(leaves, _leaves(home.trees), strict=True):
            if type(own) is not int:
                self._bring_home(leaf, own, recorder)
            elif type(leaf) is Changing:
                self._ends.append(leaf)
            else:
                raise UnrecordableError("a count is made outside the recording")
        self._program = Program(recorder, inputs)
        self._count()

    def _bring_home(self, leaf: Any, own: Native, recorder: Recorder) -> None:
        """Copy a new array over the one of home, now and in replays."""
        if leaf is own:
            return
        if not _alike(leaf, own) or not recorder.knows(leaf):
            raise UnrecordableError("a parameter or a part of the state is made outside the recording")
        if self.home.lies_in(leaf):
            raise UnrecordableError("parameters or parts of the state change places")
        recorder.entries.append((np.copyto, (own, leaf)))
        np.copyto(own, leaf)

    def _count(self) -> None:
        self.home.counts = [end.now for end in self._ends]

    def __call__(self, batch: tuple[Any, ...]) -> Native:
        """The step on the arrays of home and this batch: its loss."""
        for start, count in zip(self._starts, self.home.counts, strict=True):
            start.now = count
        self._program.run(batch)
        self._count()
        return self.value()

    def value(self) -> Native:
        """The loss, in memory of its own."""
        return self.loss[()] if self.number else self.loss.copy()


def _nodes(tree: Tree) -> Iterator[Tree]:
    """The dict and those in it."""
    yield tree
    for value in tree.values():
        if isinstance(value, dict):
            yield from _nodes(value)


def _places(tree: Tree) -> Iterator[tuple[Tree, str, Any]]:
    """(dict, key, leaf) of each leaf, in the order of `trees.leaves`."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _places(value)
        else:
            yield tree, key, value


def _leaves(given: Sequence[Tree]) -> list[Any]:
    return [leaf for tree in given for leaf in trees.leaves(tree)]


def _is_plain(a: Any) -> bool:
    """Whether it is an array of NumPy's own that lies in memory in C order, and may be written into."""
    return type(a) is np.ndarray and bool(a.flags.carray)


def _alike(leaf: Any, own: Any) -> bool:
    """Whether a leaf may take the place of another: counts, or arrays of one shape and dtype."""
    if type(own) is int:
        return type(leaf) is int
    return isinstance(leaf, np.ndarray) and leaf.shape == own.shape and leaf.dtype == own.dtype
