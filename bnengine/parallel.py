"""Ranks that train together: which one this is, how many there are, and the sum of an array over all of them.

`Communicator` is the whole idea. Three of them are here: `Alone` (one process), `Mpi` and `Nccl`. The mathematics
never sees one: batch normalisation and `train_step` are handed `communicator.sum` as a plain function.
"""

from __future__ import annotations

import itertools
import os
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, get_args

import numpy as np
from array_api_compat import array_namespace, device, is_cupy_array

from ._typing import ArrayT, Native, Transport
from .backends import as_numpy

KINDS = get_args(Transport)
"""Communicators by the names that the command line takes."""

LAUNCHED = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
"""Environment variables in which launchers (MPICH, Open MPI, srun) say how many processes they started."""

NOT_READY = 600
"""CUDA's status of a stream that still works."""


class RankError(RuntimeError):
    """Ranks that cannot work together: one is missing, or they were started differently."""


class Communicator:
    """The ranks of a run, as one of them sees them.

    Every rank has to make the same calls in the same order. A transport offers `_sum`, `_gather` and `_split`.

    Examples
    --------
    >>> import numpy as np
    >>> from bnengine import parallel
    >>> alone = parallel.join("none")
    >>> alone.rank, alone.size, alone.sum(np.ones(2))
    (0, 1, array([1., 1.]))
    >>> alone.reductions, alone.bytes
    (1, 16)
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        """Number of this rank, from 0."""
        self.size = size
        """How many ranks there are."""
        self.reductions = 0
        """Sums taken so far."""
        self.bytes = 0
        """Size of the arrays that this rank gave to them."""

    def sum(self, a: ArrayT, /) -> ArrayT:
        """The sum over ranks of arrays of one shape and dtype: a new array on every rank, in a's library and place."""
        self.reductions += 1
        self.bytes += a.dtype.itemsize * int(np.prod(a.shape))
        return a if self.size == 1 else self._sum(a)

    def gather(self, value: Any) -> list[Any]:
        """What each rank gave, by rank, on every rank; plain Python objects."""
        return [value] if self.size == 1 else [pickle.loads(raw) for raw in self._gather(pickle.dumps(value))]

    def broadcast(self, value: Any) -> Any:
        """What rank 0 gave, on every rank."""
        return self.gather(value if self.rank == 0 else None)[0]

    def barrier(self) -> None:
        """Return once every rank has come here."""
        self.gather(None)

    def each(self, function: Callable[[], Any]) -> Any:
        """function(), on each rank its own. What it raises on any rank is raised on every rank."""
        if self.size == 1:
            return function()
        value, error = None, None
        try:
            value = function()
        except Exception as raised:  # noqa: BLE001  the others wait for this rank: they have to hear of it
            error = raised
        for other in self.gather(error):
            if other is not None:
                raise other
        return value

    def once(self, function: Callable[[], Any]) -> Any:
        """function() of rank 0 alone, on every rank; so is what it raises."""
        return self.broadcast(self.each(function if self.rank == 0 else lambda: None))

    def agree(self, facts: dict[str, Any]) -> None:
        """Refuse ranks that were started with different settings or versions.

        Raises
        ------
        RankError
            On every rank, naming what differs and where.
        """
        first, *others = self.gather(facts)
        for rank, other in enumerate(others, 1):
            for name in first | other:
                if first.get(name) != other.get(name):
                    raise RankError(
                        f"distributed: {name} is {first.get(name)!r} on rank 0 and {other.get(name)!r} on rank {rank}; "
                        "every rank has to be started alike"
                    )

    def split(self, size: int) -> Communicator:
        """The group of `size` neighbouring ranks that this one belongs to.

        Raises
        ------
        ValueError
            Where the ranks do not divide into groups of that size.
        """
        if size < 1 or self.size % size:
            raise ValueError(f"sync_ranks: expected a divisor of the number of ranks, {self.size}, got {size}")
        return self if size == self.size else self._split(size)

    def together(self) -> bool:
        """After an error: whether every rank has one, so that all can end by themselves. Takes two seconds at most."""
        return True

    def abort(self, status: int) -> NoReturn:
        """End the processes of all ranks, which may be waiting for this one."""
        raise SystemExit(status)

    def _sum(self, a: Native) -> Native:
        raise NotImplementedError

    def _gather(self, raw: bytes) -> list[bytes]:
        raise NotImplementedError

    def _split(self, size: int) -> Communicator:
        raise NotImplementedError


class Alone(Communicator):
    """One process, which needs no transport."""

    def __init__(self) -> None:
        super().__init__(0, 1)


class Mpi(Communicator):
    """Ranks of an MPI communicator, over arrays of any library.

    CuPy arrays go to MPI as they are where it says that it takes device memory (the standard's info key
    `mpi_memory_alloc_kinds`), and through the host where it does not.

    Collectives are started without blocking and polled. So a rank that never comes is noticed, and ranks that
    share a processor make way for each other, which MPI's own waiting, by spinning, does not.
    """

    def __init__(self, comm: Any, timeout: float) -> None:
        super().__init__(comm.Get_rank(), comm.Get_size())
        self._comm, self._timeout = comm, timeout
        self._endings = comm.Dup()  # an error may find the others in a collective of _comm
        self._takes_device_memory = "cuda" in (comm.Get_info().get("mpi_memory_alloc_kinds") or "")

    def together(self) -> bool:
        """Two seconds are given to the others."""
        try:
            _wait(self._endings.Ibarrier().Test, 2.0)
        except RankError:
            return False
        return True

    def abort(self, status: int) -> NoReturn:
        """Ends every process of the launcher."""
        time.sleep(0.5)  # for the launcher to pass on what has been said: it ends with the processes
        self._comm.Abort(status)
        os._exit(status)  # where the launcher is slow to end this process too

    def _sum(self, a: Native) -> Native:
        if self._takes_device_memory and is_cupy_array(a):
            xp = array_namespace(a)
            source, total = xp.ascontiguousarray(a), xp.empty(a.shape, dtype=a.dtype)
            device(a).synchronize()  # MPI does not know of streams
            self._finish(self._comm.Iallreduce(source, total))
            return total
        source = np.ascontiguousarray(as_numpy(a))
        total = np.empty_like(source)
        self._finish(self._comm.Iallreduce(source, total))
        if isinstance(a, np.ndarray):
            return total
        return array_namespace(a).asarray(total, dtype=a.dtype, device=device(a))

    def _gather(self, raw: bytes) -> list[bytes]:
        lengths = np.empty(self.size, np.int64)
        self._finish(self._comm.Iallgather(np.asarray([len(raw)], np.int64), lengths))
        everything = bytearray(int(lengths.sum()))
        ends = np.cumsum(lengths)
        self._finish(self._comm.Iallgatherv(raw, [everything, lengths, ends - lengths, _mpi().BYTE]))
        return [bytes(everything[end - length : end]) for length, end in zip(lengths, ends, strict=True)]

    def _split(self, size: int) -> Communicator:
        return Mpi(self._comm.Split(self.rank // size, self.rank), self._timeout)

    def _finish(self, request: Any) -> None:
        _wait(request.Test, self._timeout)


class Nccl(Communicator):
    """Ranks with a GPU each: CuPy arrays are summed by NCCL, everything else goes over `control`."""

    def __init__(self, control: Communicator, timeout: float) -> None:
        from cupy.cuda import nccl

        super().__init__(control.rank, control.size)
        self._control, self._timeout = control, timeout
        name = control.once(nccl.get_unique_id)
        self._nccl = nccl.NcclCommunicator(control.size, name, control.rank)
        names = {"f4": "FLOAT32", "f8": "FLOAT64", "i4": "INT32", "i8": "INT64"}
        self._kinds = {code: getattr(nccl, f"NCCL_{name}") for code, name in names.items()}
        self._plus = nccl.NCCL_SUM

    def together(self) -> bool:
        """Over MPI: NCCL waits for ever for a rank that has gone."""
        return self._control.together()

    def abort(self, status: int) -> NoReturn:
        """Over MPI."""
        self._control.abort(status)

    def _sum(self, a: Native) -> Native:
        if not is_cupy_array(a):
            return self._control.sum(a)
        import cupy

        source, stream = cupy.ascontiguousarray(a), cupy.cuda.get_current_stream()
        total = cupy.empty_like(source)
        kind = self._kinds[a.dtype.str[1:]]
        self._nccl.allReduce(source.data.ptr, total.data.ptr, source.size, kind, self._plus, stream.ptr)
        _wait(lambda: _over(stream), self._timeout)
        return total

    def _gather(self, raw: bytes) -> list[bytes]:
        return self._control._gather(raw)

    def _split(self, size: int) -> Communicator:
        return Nccl(self._control.split(size), self._timeout)


@dataclass(frozen=True)
class Shares:
    """Which of the training rows this rank has: those of all ranks are numbered one rank after another."""

    ranks: Communicator
    group: Communicator
    """Ranks that share batch statistics."""
    ends: tuple[int, ...]
    """Number of the first row after each rank's."""

    @classmethod
    def of(cls, ranks: Communicator, rows: int, group: int | None = None) -> Shares:
        """The shares, where this rank has so many rows and groups of so many ranks (None: all) share statistics."""
        shared = ranks if group is None else ranks.split(group)
        return cls(ranks, shared, tuple(itertools.accumulate(ranks.gather(rows))))

    @property
    def total(self) -> int:
        """Rows of all ranks."""
        return self.ends[-1]

    @property
    def first(self) -> int:
        """Number of this rank's first row."""
        return self.ends[self.ranks.rank - 1] if self.ranks.rank else 0

    def head(self, rows: int) -> int:
        """How many of the first so many rows are this rank's; they are the first of its own."""
        return min(max(rows - self.first, 0), self.ends[self.ranks.rank] - self.first)

    def own(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Those of the rows that this rank has, as numbers among its own."""
        if self.ranks.size == 1:
            return rows
        return rows[(rows >= self.first) & (rows < self.ends[self.ranks.rank])] - self.first

    def places(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Where among these rows those that this rank has stand."""
        return np.flatnonzero((rows >= self.first) & (rows < self.ends[self.ranks.rank])).astype(np.int32)

    def whole(self, batches: list[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        """The batches of which every group has the two rows that statistics take."""
        if self.group.size == self.ranks.size:
            return batches
        ends = [0, *self.ends[self.group.size - 1 :: self.group.size]]
        whole = [rows for rows in batches if np.histogram(rows, ends)[0].min() >= 2]
        if not whole:
            raise ValueError("sync_ranks: in every batch a group of ranks has fewer than 2 rows; use larger batches")
        return whole


def join(kind: Transport = "none", *, timeout: float = 300.0) -> Communicator:
    """The communicator of this process with the others that its launcher started.

    Parameters
    ----------
    kind : {"none", "mpi", "nccl"}
        "mpi" needs mpi4py, "nccl" also CuPy and a GPU for each rank, which is made the current device.
    timeout : float
        Seconds to wait for other ranks before giving them up.

    Raises
    ------
    ImportError
        Where mpi4py or CuPy is missing.
    RankError
        Where the launcher started another number of processes than MPI knows of, or GPUs are too few.
    """
    if kind not in KINDS:
        raise ValueError(f"distributed: expected {', '.join(KINDS)}, got {kind!r}")
    if kind == "none":
        return Alone()
    world = _mpi().COMM_WORLD
    for name in LAUNCHED:
        launched = int(os.environ.get(name, world.Get_size()))
        if launched != world.Get_size():
            raise RankError(
                f"distributed: the launcher started {launched} processes ({name}) but MPI knows of {world.Get_size()}; "
                "mpiexec belongs to another MPI than mpi4py's"
            )
    ranks = Mpi(world, timeout)
    if kind == "mpi":
        return ranks
    mine = ranks.each(_gpus)
    node = world.Split_type(_mpi().COMM_TYPE_SHARED)
    seen = node.allgather(mine)
    ranks.each(lambda: _take_gpu(seen, node.Get_rank()))
    return Nccl(ranks, timeout)


def _mpi() -> Any:
    os.environ.setdefault("MPIR_CVAR_SUPPRESS_ABORT_MESSAGE", "1")  # MPICH: the reason has been told by then
    try:
        from mpi4py import MPI
    except ModuleNotFoundError as error:
        raise ImportError(f"distributed: {error}; install the extra mpi") from error
    except (ImportError, RuntimeError) as error:
        raise ImportError(
            "distributed: mpi4py finds no MPI library; load the cluster's module or pip install mpich"
        ) from error
    return MPI


def _gpus() -> list[str]:
    """The GPUs that this process sees, by names that every process of the node calls them."""
    try:
        import cupy
        from cupy.cuda import nccl
    except ImportError as error:
        raise ImportError("distributed: nccl needs CuPy; install the extra cuda12 or cuda13") from error
    if not nccl.available:
        raise ImportError("distributed: CuPy finds no NCCL; pip install nvidia-nccl-cu12 or nvidia-nccl-cu13")
    count = cupy.cuda.runtime.getDeviceCount() if cupy.is_available() else 0
    return [cupy.cuda.Device(number).pci_bus_id for number in range(count)]


def _take_gpu(seen: list[list[str]], rank: int) -> None:
    """Make the first GPU that no rank before this one takes the current one; launchers may show each rank its own."""
    number, taken = None, set[str]()
    for names in seen[: rank + 1]:
        number = next((k for k, name in enumerate(names) if name not in taken), None)
        if number is not None:
            taken.add(names[number])
    if number is None:
        found = len({name for names in seen for name in names})
        raise RankError(f"distributed: nccl needs a GPU for each rank, and this node has {found} for rank {rank} on it")
    import cupy

    cupy.cuda.Device(number).use()


def _over(stream: Any) -> bool:
    """Whether a stream of CuPy is done. Its own `done` says no for ever after an error of CUDA, whoever made it."""
    from cupy.cuda import runtime

    if (status := runtime.streamQuery(stream.ptr)) not in (0, NOT_READY):
        raise runtime.CUDARuntimeError(status)
    return bool(status == 0)


def _wait(done: Callable[[], bool], seconds: float) -> None:
    """Return once done(). A wait of more than a millisecond leaves the processor to others, in naps of 50 us."""
    begun = time.monotonic()
    while not done():
        waited = time.monotonic() - begun
        if waited > seconds:
            raise RankError(f"waited {seconds:g} s for the others; one of them has died or is stuck")
        time.sleep(0 if waited < 1e-3 else 5e-5)
