"""The calls of the NCCL communicator against a stand-in that reads and writes memory by pointer, as NCCL does.

Threads stand in for ranks. Not verified on GPUs. `test_the_constants_and_calls_are_cupys` holds the stand-in against
CuPy's own module where that and NCCL are installed; neither needs a GPU for it.
"""

from __future__ import annotations

import ctypes
import sys
import types
from typing import ClassVar

import numpy as np
import pytest
import ranks

from bnengine.parallel import Nccl, RankError, _take_gpu

KINDS = {7: np.float32, 8: np.float64, 2: np.int32, 4: np.int64}


class Memory(np.ndarray):
    """A CuPy array as far as the communicator looks at it: `.data.ptr`."""

    @property
    def data(self):
        return types.SimpleNamespace(ptr=self.ctypes.data)


class StandIn:
    """cupy.cuda.nccl.NcclCommunicator: threads that made one of the same name sum at a barrier."""

    made: ClassVar[dict[bytes, list]] = {}

    def __init__(self, size, name, rank):
        slate, barrier = self.made.setdefault(name, ranks.slates(size))
        self.ranks = ranks.Threads(rank, slate, barrier)

    def allReduce(self, sendbuf, recvbuf, count, datatype, op, stream):  # noqa: N802
        assert op == 0
        assert stream == 5
        kind = np.dtype(KINDS[datatype])
        source, target = (
            np.frombuffer((ctypes.c_char * (count * kind.itemsize)).from_address(p), kind) for p in (sendbuf, recvbuf)
        )
        target[:] = self.ranks._sum(source.copy())


class CudaError(RuntimeError):
    """CuPy's, made of a status."""


@pytest.fixture
def cupy(monkeypatch):
    stream = types.SimpleNamespace(ptr=5)
    nccl = types.ModuleType("cupy.cuda.nccl")
    nccl.NCCL_FLOAT32, nccl.NCCL_FLOAT64, nccl.NCCL_INT32, nccl.NCCL_INT64, nccl.NCCL_SUM = 7, 8, 2, 4, 0
    nccl.get_unique_id = lambda: b"one"
    nccl.NcclCommunicator = StandIn
    cuda = types.ModuleType("cupy.cuda")
    cuda.nccl, cuda.get_current_stream = nccl, lambda: stream
    cuda.runtime = types.ModuleType("cupy.cuda.runtime")
    cuda.runtime.CUDARuntimeError = CudaError
    cuda.runtime.status = 0
    cuda.runtime.streamQuery = lambda pointer: cuda.runtime.status if pointer == stream.ptr else 400
    module = types.ModuleType("cupy")
    module.cuda, module.ndarray = cuda, Memory
    module.ascontiguousarray = lambda a: np.ascontiguousarray(a).view(Memory)
    module.empty_like = lambda a: np.empty_like(a).view(Memory)
    for name, value in {
        "cupy": module,
        "cupy.cuda": cuda,
        "cupy.cuda.nccl": nccl,
        "cupy.cuda.runtime": cuda.runtime,
    }.items():
        monkeypatch.setitem(sys.modules, name, value)
    monkeypatch.setattr(StandIn, "made", {})
    monkeypatch.setattr("bnengine.parallel.is_cupy_array", lambda a: isinstance(a, Memory))
    return module


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_arrays_of_the_device_are_summed_by_nccl(cupy, dtype):
    def run(control):
        communicator = Nccl(control, 5.0)
        a = (np.arange(12).reshape(3, 4) + control.rank).astype(dtype).T.view(Memory)  # not contiguous
        total = communicator.sum(a)
        host = communicator.sum(np.ones(2))
        assert communicator.gather(control.rank) == [0, 1, 2]
        return total, host, communicator.reductions, control.reductions

    for total, host, reductions, by_control in ranks.together(3, run):
        np.testing.assert_array_equal(total, 3 * np.arange(12).reshape(3, 4).T + 3)
        assert total.dtype == dtype
        assert isinstance(total, Memory)
        np.testing.assert_array_equal(host, 3)
        assert (reductions, by_control) == (2, 1)


def test_a_sum_that_never_ends_is_given_up(cupy):
    cupy.cuda.runtime.status = 600  # cudaErrorNotReady

    def run(control):
        with pytest.raises(RankError, match=r"waited 0.05 s for the others"):
            Nccl(control, 0.05).sum(np.ones(3).view(Memory))

    ranks.together(2, run)


def test_an_error_of_cuda_is_raised_as_what_it_is(cupy):
    """A stream after an error is never done: 300 s later it was called the death of another rank."""
    cupy.cuda.runtime.status = 700  # cudaErrorIllegalAddress

    def run(control):
        with pytest.raises(CudaError, match="700"):
            Nccl(control, 5.0).sum(np.ones(3).view(Memory))

    ranks.together(2, run)


class Gpu:
    """cupy.cuda.Device as far as ranks share them out."""

    used = None

    def __init__(self, number):
        self.number = number

    def use(self):
        Gpu.used = self.number


@pytest.mark.parametrize(
    ("seen", "numbers"),
    [
        ([["a", "b"], ["a", "b"]], [0, 1]),
        ([["a"], ["b"]], [0, 0]),  # each rank is shown its own, as srun --gpus-per-task=1 does
        ([["a", "b"], ["b", "a"], ["c", "a"]], [0, 0, 0]),
        ([["a", "b"], ["a"]], [0, None]),
        ([[], []], [None, None]),
    ],
)
def test_ranks_of_a_node_share_out_the_gpus_that_they_see(cupy, seen, numbers):
    cupy.cuda.Device = Gpu
    for rank, number in enumerate(numbers):
        if number is None:
            found = len({name for names in seen for name in names})
            with pytest.raises(
                RankError, match=f"a GPU for each rank, and this node has {found} for rank {rank} on it"
            ):
                _take_gpu(seen, rank)
        else:
            _take_gpu(seen, rank)
            assert Gpu.used == number


def test_the_constants_and_calls_are_cupys():
    nccl = pytest.importorskip("cupy.cuda.nccl", reason="no CuPy")
    if not nccl.available:
        pytest.skip("CuPy finds no NCCL: pip install nvidia-nccl-cu13")
    assert (nccl.NCCL_FLOAT32, nccl.NCCL_FLOAT64, nccl.NCCL_INT32, nccl.NCCL_INT64, nccl.NCCL_SUM) == (7, 8, 2, 4, 0)
    assert isinstance(nccl.get_unique_id(), bytes)
    assert nccl.NcclCommunicator.allReduce.__doc__.startswith(
        "NcclCommunicator.allReduce(self, intptr_t sendbuf, intptr_t recvbuf, size_t count, int datatype, int op, "
    )
