"""The seam through which the work of a step on NumPy arrays goes, so that it can be noted once and done again.

While a step is recorded, what it does to arrays must be told here, and what is not told is found out:

* `call` makes a lowest-level call that fills arrays: it is noted as it is, with its memory.
* `made` gives the results of a function of arrays. Where all of its work was told by `call`, that is noted; else the
  function itself is, and its results are copied to where they were.
* `live` computes a value that changes from step to step, such as a learning rate, from the counts of the step. Those
  are `Changing` while a step is recorded, and anything else that is done with one is refused: no number of one step
  can get into those that follow.

A call that reads memory which no call, input or parameter made is refused as well. Outside a recording all of these
only do what they say.
"""

from __future__ import annotations

import functools
import operator
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ._typing import Native

_recorders: dict[int, Recorder | Witness] = {}  # by thread; nearly always empty


class UnrecordableError(Exception):
    """A step that cannot be recorded; the message says why."""


def call(function: Callable[..., Any], arguments: tuple[Any, ...], new: tuple[Native, ...] = ()) -> None:
    """function(*arguments), which fills the arrays `new` of its arguments and may write into others of them."""
    function(*arguments)
    if _recorders and (recorder := _recorders.get(threading.get_ident())) is not None:
        recorder.note(function, arguments, new)


def made(function: Callable[..., Any], *arguments: Any) -> Any:
    """function(*arguments): arrays computed from arrays, and from nothing else that changes."""
    if _recorders and (recorder := _recorders.get(threading.get_ident())) is not None:
        return recorder.made(function, arguments)
    return function(*arguments)


def again(function: Callable[..., Any], *arguments: Any) -> Any:
    """function(*arguments), for a function of the user's: arrays as with `made`, but it is called in every step."""
    if _recorders and (recorder := _recorders.get(threading.get_ident())) is not None:
        return recorder.again(function, arguments)
    return function(*arguments)


def live(function: Callable[..., Any], *arguments: Any) -> Any:
    """function(*arguments): a value that each step computes anew, where one of the arguments is such a value."""
    if _recorders and (recorder := _recorders.get(threading.get_ident())) is not None:
        return recorder.live(function, arguments)
    return function(*arguments)


def table(dtype: Any, function: Callable[..., Any], *arguments: Any) -> Native:
    """function(*arguments), numbers that may change from step to step as with `live`, in an array."""
    values = live(function, *arguments)
    if type(values) is not Changing:
        return constant(np.asarray(values, dtype))
    array = np.asarray(values.now, dtype)
    _recorders[threading.get_ident()].note(np.copyto, (array, values), (array,))
    return array


def constant(array: Native) -> Native:
    """An array whose values are the same in every step."""
    if _recorders and (recorder := _recorders.get(threading.get_ident())) is not None:
        recorder.know(array)
    return array


def item(array: Native) -> Native:
    """The value of an array without axes, as NumPy gives it; while a step is recorded the array, which can be followed."""
    recorded = _recorders and isinstance(_recorders.get(threading.get_ident()), Recorder)
    return array if recorded else array[()]


class Changing:
    """A value that each step computes anew from the counts that it is given; it can be added to, and handed to `live`."""

    __hash__ = None  # type: ignore[assignment]  # no key of a dict

    def __init__(self, now: Any, function: Callable[..., Any] | None = None, arguments: tuple[Any, ...] = ()) -> None:
        self.now = now
        self.function = function
        self.arguments = arguments

    def __add__(self, other: Any) -> Any:
        return live(operator.add, self, other)

    def __bool__(self) -> bool:
        raise UnrecordableError("a branch depends on the number of the step")

    def __eq__(self, other: object) -> bool:
        raise UnrecordableError("the number of the step is compared")

    __ne__ = __eq__

    def renew(self) -> None:
        """Compute it from what its arguments are now."""
        if self.function is not None:
            self.now = self.function(*[a.now if type(a) is Changing else a for a in self.arguments])


class Recorder:
    """What a step does, in order, told by the functions above; one thread's, between `start` and `stop`."""

    def __init__(self) -> None:
        self.entries: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
        self.changing: list[Changing] = []
        self._roots: dict[int, Any] = {}  # kept alive, so that their memory is nobody else's
        self._learned: list[int] = []
        self._foreign = ""
        self.raised: Exception | None = None
        """By a function that is called in every step, so that this step too ends in it."""

    def record(self, step: Callable[..., Any], *arguments: Any) -> Any:
        """step(*arguments), noted."""
        result = _with(self, step, *arguments)
        if self._foreign:
            raise UnrecordableError(self._foreign)
        return result

    def know(self, array: Native) -> None:
        """Its memory holds what the recording, or whoever began it, put there."""
        root = root_of(array)
        if id(root) not in self._roots:
            self._roots[id(root)] = root
            self._learned.append(id(root))

    def knows(self, array: Native) -> bool:
        """Whether its memory is known."""
        return id(root_of(array)) in self._roots

    # ---- what the functions of the module tell

    def note(self, function: Callable[..., Any], arguments: tuple[Any, ...], new: tuple[Native, ...]) -> None:
        """A lowest-level call that was made."""
        for a in arguments:
            if not any(a is filled for filled in new):
                self._foreign = self._foreign or self._refusal(function, a)
        for array in new:
            self.know(array)
        self.entries.append((function, arguments))

    def made(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Results of a function: noted by its calls where these tell all, else as a whole."""
        if any(type(a) is Changing for a in arguments):
            return self._whole(function, arguments, _with_memory(self._apart(function, arguments), self.knows))
        for a in flat(arguments):
            if refusal := self._refusal(function, a):
                raise UnrecordableError(refusal)
        entries, learned, foreign, self._foreign = len(self.entries), len(self._learned), self._foreign, ""
        results = function(*arguments)
        told = not self._foreign and all(
            r is None or (isinstance(r, np.ndarray) and self.knows(r)) for r in flat(results)
        )
        self._foreign = foreign
        if told:
            return results
        del self.entries[entries:]
        for root in self._learned[learned:]:
            del self._roots[root]
        del self._learned[learned:]
        return self._whole(function, arguments, _with_memory(results, self.knows))

    def again(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Results of a function of the user's: it may give one array each time, or one that it was handed."""
        results = _with_memory(self._apart(function, arguments), _everything)
        return self._whole(functools.partial(again, function), arguments, results)

    def _apart(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """What a function gives that is noted as a whole: what it calls is its own affair."""
        del _recorders[threading.get_ident()]
        try:
            return function(*[a.now if type(a) is Changing else a for a in arguments])
        except Exception as error:
            self.raised = error
            raise
        finally:
            _recorders[threading.get_ident()] = self

    def live(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """A value of this step, noted where it changes."""
        if not any(type(a) is Changing for a in arguments):
            return function(*arguments)
        value = Changing(self._apart(function, arguments), function, arguments)
        self.changing.append(value)
        return value

    def _whole(self, function: Callable[..., Any], arguments: tuple[Any, ...], results: Any) -> Any:
        for a in flat(arguments):
            if refusal := self._refusal(function, a):
                raise UnrecordableError(refusal)
        for r in flat(results):
            if isinstance(r, np.ndarray):
                self.know(r)
            elif r is not None:
                raise UnrecordableError(f"{_name(function)} gives {type(r).__name__}, expected arrays")
        self.entries.append((_Whole(function, list(flat(results))), arguments))
        return results

    def _refusal(self, function: Callable[..., Any], argument: Any) -> str:
        """Why an argument cannot be followed; "" where it can."""
        if isinstance(argument, np.ndarray):
            return (
                "" if self.knows(argument) else f"{_name(function)} reads an array that is made outside the recording"
            )
        if isinstance(argument, np.generic):
            return f"{_name(function)} reads a number that may have been computed from arrays"
        return ""


class Witness:
    """What the user's functions were asked in a step, and gave: asked again, it answers the same, in order.

    So a replay can be compared with the step itself, and these functions are called once all the same: they may count.
    """

    def __init__(self) -> None:
        self._heard: list[tuple[Any, Any]] = []
        self._answered = -1  # not yet: listening
        self.differs = False

    def listen(self, step: Callable[..., Any], *arguments: Any) -> Any:
        """step(*arguments), listened to."""
        return _with(self, step, *arguments)

    def answer(self, step: Callable[..., Any], *arguments: Any) -> Any:
        """step(*arguments), in which the answers are given again."""
        self._answered = 0
        return _with(self, step, *arguments)

    def again(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Listen or answer; a question that is not the same is noted."""
        if self._answered < 0:
            asked = [np.array(a) if isinstance(a, np.ndarray) else a for a in flat(arguments)]
            self._heard.append((asked, function(*arguments)))
            return self._heard[-1][1]
        if self._answered == len(self._heard):
            raise UnrecordableError(f"{_name(function)} is called more often than in the step")
        asked, results = self._heard[self._answered]
        self._answered += 1
        self.differs |= not same(asked, list(flat(arguments)))
        return results

    def note(self, *_: Any) -> None:
        """Nothing is noted."""

    know = note

    def made(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """What the function gives."""
        return function(*arguments)

    live = made


def _with(recorder: Recorder | Witness, step: Callable[..., Any], *arguments: Any) -> Any:
    """step(*arguments), of which the recorder is told."""
    me = threading.get_ident()
    _recorders[me] = recorder
    try:
        return step(*arguments)
    finally:
        del _recorders[me]


def same(values: Sequence[Any], others: Sequence[Any]) -> bool:
    """Whether arrays are the same bit by bit, and all else is equal."""
    return len(values) == len(others) and all(map(_same, values, others))


def _same(value: Any, other: Any) -> bool:
    if not isinstance(value, np.ndarray | np.generic):
        return bool(value == other)
    kinds = [(a.dtype, a.shape) for a in (value, np.asarray(other))]
    return kinds[0] == kinds[1] and value.tobytes() == np.asarray(other).tobytes()


class _Whole:
    """A function whose results are copied to where they were when it was recorded."""

    def __init__(self, function: Callable[..., Any], outs: list[Native | None]) -> None:
        self.function = function
        self.outs = outs

    def __call__(self, *arguments: Any) -> None:
        for out, result in zip(self.outs, flat(self.function(*arguments)), strict=True):
            if out is not None:
                if out.shape != result.shape or out.dtype != result.dtype:
                    raise UnrecordableError(f"{_name(self.function)} gives other shapes or dtypes than before")
                np.copyto(out, result)


class Program:
    """What a recorder noted, to be done again for other inputs and counts.

    Where a call reads an input, or a view of one, the same view of the new input takes its place: no copy.
    """

    def __init__(self, recorder: Recorder, inputs: Sequence[Native | None]) -> None:
        self.changing = recorder.changing
        self.entries: list[tuple[Callable[..., Any], Any]] = []
        self._views: list[tuple[list[Any], int, int, tuple[Any, ...] | None]] = []
        self._values: list[tuple[list[Any], int, Changing]] = []
        roots = {id(root_of(a)): i for i, a in enumerate(inputs) if a is not None}
        for function, given in recorder.entries:
            arguments, before = list(given), len(self._views) + len(self._values)
            for position, a in enumerate(given):
                self._bind(arguments, position, a, inputs, roots)
            changes = len(self._views) + len(self._values) > before
            self.entries.append((function, arguments if changes else given))

    def _bind(
        self, arguments: list[Any], position: int, a: Any, inputs: Sequence[Native | None], roots: dict[int, int]
    ) -> None:
        if type(a) is Changing:
            self._values.append((arguments, position, a))
        elif isinstance(a, np.ndarray):
            which = roots.get(id(root_of(a)))
            if which is not None:
                self._views.append((arguments, position, which, _view_of(a, inputs[which])))
        elif any(type(part) is Changing or id(root_of(part)) in roots for part in flat(a)):
            raise UnrecordableError("an input stands inside a tuple")

    def run(self, inputs: Sequence[Native | None]) -> None:
        """Do it again. The counts that it starts from were set before."""
        for arguments, position, which, view in self._views:
            source = inputs[which]
            arguments[position] = source if view is None else _placed(source, *view)
        for value in self.changing:
            value.renew()
        for arguments, position, value in self._values:
            arguments[position] = value.now
        for function, arguments in self.entries:
            function(*arguments)
        for arguments, position, _, _ in self._views:
            arguments[position] = None  # the batch is the caller's: nothing keeps it


def root_of(array: Any) -> Any:
    """Who owns the memory of an array."""
    while isinstance(array, np.ndarray) and array.base is not None:
        array = array.base
    return array


def flat(value: Any) -> Iterator[Any]:
    """What nested tuples and lists hold."""
    if isinstance(value, tuple | list):
        for part in value:
            yield from flat(part)
    else:
        yield value


def _with_memory(results: Any, shared: Callable[[Native], bool]) -> Any:
    """The results as arrays that may be written into: copies where they are numbers, read-only or `shared`."""
    if isinstance(results, tuple | list):
        parts = [_with_memory(part, shared) for part in results]
        return type(results)(*parts) if hasattr(results, "_fields") else type(results)(parts)
    if isinstance(results, np.generic):
        return np.array(results)
    if isinstance(results, np.ndarray) and (shared(results) or not results.flags.writeable):
        return np.array(results)
    return results


def _everything(_: Native) -> bool:
    return True


def _placed(source: Native, shape: Any, dtype: Any, offset: int, strides: Any) -> Native:
    return np.ndarray(shape, dtype, source, offset, strides)


def _view_of(a: Native, source: Any) -> tuple[Any, ...] | None:
    """(shape, dtype, offset, strides) of a view; None where it is all of its source."""
    offset = a.__array_interface__["data"][0] - source.__array_interface__["data"][0]
    view = a.shape, a.dtype, offset, a.strides
    return None if view == (source.shape, source.dtype, 0, source.strides) else view


def _name(function: Any) -> str:
    """What to call a function in a message."""
    function = getattr(function, "func", function)  # of a partial
    return str(getattr(function, "__name__", function))
