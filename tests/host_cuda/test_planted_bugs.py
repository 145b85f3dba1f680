"""The proof can fail: bugs planted in device code, kernels, CuPy's source and call sites are all caught."""

from __future__ import annotations

import importlib.util
import itertools
import multiprocessing
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

import bnengine.kernels

from .checks import Device, smallest

FOLDER = Path(bnengine.kernels.__file__).parent / "cuda"
GENERATED = "CuPy's own source"
FORK = multiprocessing.get_context("fork")

# Python and JAX warn of forks where other tests have left threads; these children touch neither.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore:.*fork.*:RuntimeWarning")


class Bug(NamedTuple):
    name: str
    file: str
    right: str
    wrong: str


STATISTICS, NETWORK, UPDATES = "normalization.cuh", "network.cuh", "updates.cuh"
KERNELS, LAYOUT, CALLS, OPTIMIZERS = "sources.py", "layout.py", "__init__.py", "updates.py"
PORTABLE, WIDE, RULE = "portable.py", "wide.py", "plans.py"
TILES, HELD, SPLIT = "tiles.cuh", "held_forward.cuh", "split_moments.cuh"

SOME = [
    Bug("wrong tail", STATISTICS, "n < outer && j < inner", "n <= outer && j < inner"),
    Bug("lost ReLU mask", STATISTICS, "relu && affine(x) <= 0 ? M(0) : dy", "dy"),
    Bug("wrong divisor", STATISTICS, "mean /= taken", "mean /= IN_FLIGHT"),
    Bug("remainder lost", STATISTICS, "fma(-remainder, scale, beta)", "beta"),
    Bug(
        "swapped statistics",
        PORTABLE,
        "offset, var, *m, axis=(0, 2)",
        "offset, var, m.mean, m.var, m.remainder, axis=(0, 2)",
    ),
    Bug("wrong grid", PORTABLE, "relu, *x.walk, y, size=x.threads)", "relu, *x.walk, y, size=x.threads - 1)"),
    Bug("buffer too small", PORTABLE, "y = device.cupy.empty(x.flat.shape,", "y = device.cupy.empty(x.flat.size - 1,"),
    Bug("missing barrier", GENERATED, "_sdata[_tid] = _s;\n    __syncthreads();", "_sdata[_tid] = _s;"),
    Bug("divergent barrier", GENERATED, "_REDUCE(_block);", "_REDUCE(_block); __syncthreads();"),
    Bug("softmax not shifted", "cross_entropy.cuh", "total += exp((M)z[k] - top)", "total += exp((M)z[k])"),
    Bug("velocity of the wrong sign", UPDATES, "v.first = keep * v.first + g;", "v.first = g - keep * v.first;"),
    Bug("chunk skipped", UPDATES, "(k ? leaves.end[k - 1] : 0)", "(k ? leaves.end[k] : 0)"),
]

REST = [
    Bug("empty axis visited", STATISTICS, "n < outer && j < inner", "n < outer"),
    Bug("batch skipped", STATISTICS, "j += columns;", "j += 2 * columns;"),
    Bug("values visited twice", STATISTICS, "plane += jump;", "plane += 0;"),
    Bug("channel of a neighbour", STATISTICS, "channel = t % (unsigned int)channels", "channel = (t + 1) % (unsigned int)channels"),
    Bug("ReLU lost", STATISTICS, "T(relu && result <= 0 ? M(0) : result)", "T(result)"),
    Bug("ReLU swallows NaN", STATISTICS, "relu && result <= 0 ? M(0) : result", "relu && !(result > 0) ? M(0) : result"),
    Bug("remainder added to the mean", STATISTICS, "fma(x - mean, scale, shift)", "fma(x - (mean + remainder), scale, shift + remainder * scale)"),
    Bug("xhat without remainder", STATISTICS, "((x - mean) - remainder) * inv_std", "(x - mean) * inv_std"),
    Bug("eps left out", STATISTICS, "sqrt(var + eps)", "sqrt(var)"),
    Bug("scale left out of dx", STATISTICS, "T(channel.scale * (centered", "T(channel.inv_std * (centered"),
    Bug("mask left out of dx", STATISTICS, "channel.masked(gradient[k], value[k], relu) - mean_dy", "gradient[k] - mean_dy"),
    Bug("mean of dy left out", STATISTICS, "relu) - mean_dy;", "relu);"),
    Bug("no shift", STATISTICS, "if (count == 0) base = value[0];", ""),
    Bug("Chan's term left out of a share", STATISTICS, "square / taken - var + delta * delta * (1 - weight)", "square / taken - var"),
    Bug("Chan's term left out of a pool", STATISTICS, "b.var - a.var + delta * delta * (1 - weight)", "b.var - a.var"),
    Bug("weight of the other pool", STATISTICS, "double weight = b.count / both.count", "double weight = a.count / both.count"),
    Bug("empty pools not left out", STATISTICS, "if (b.count == 0) return a;\n  if (a.count == 0) return b;\n  Pool", "Pool"),
    Bug("remainder of a pool lost", STATISTICS, "(b.mean - a.mean) + (b.remainder - a.remainder)", "b.mean - a.mean"),
    Bug("squares overflow", STATISTICS, "square / taken - var", "square * 1024 / taken / 1024 - var"),
    Bug("sigmoid overflows", NETWORK, "(x < 0 ? small : M(1)) / (1 + small)", "exp(x) / (1 + exp(x))"),
    Bug("decay of the wrong sign", UPDATES, "v.g + decay * v.p", "v.g - decay * v.p"),
    Bug("end of a leaf overrun", UPDATES, "min(start + CHUNK, leaf.size)", "min(start + CHUNK, leaf.size + 1)"),
    Bug("step of a warp", UPDATES, "long long j = i + n * blockDim.x;", "long long j = i + n * 32;"),
    Bug("decay of a neighbour", OPTIMIZERS, "leaf.g.size, leaf.decay, leaf.shrink)", "leaf.g.size, leaves[0].decay, leaf.shrink)"),
    Bug("size of a neighbour", OPTIMIZERS, "leaf.g.data.ptr, first, second, leaf.g.size", "leaf.g.data.ptr, first, second, leaves[0].g.size"),
    Bug("too few blocks", OPTIMIZERS, "-(-leaf.g.size // CHUNK)", "leaf.g.size // CHUNK + (leaf.g.size < CHUNK)"),
    Bug("leaves beyond the table left out", OPTIMIZERS, "range(0, len(group), LEAVES)", "range(0, min(len(group), LEAVES), LEAVES)"),
    Bug("strided leaf not written back", OPTIMIZERS, "if values is not a:", "if False:"),
    Bug("label beside its class", "cross_entropy.cuh", "M(label == k)", "M(label == k + 1)"),
    Bug("negative label passes", "cross_entropy.cuh", "bool outside = label < 0 || ", "bool outside = "),
    Bug("half of the classes", "cross_entropy.cuh", "for (int offset = 16; offset; offset /= 2)", "for (int offset = 8; offset; offset /= 2)"),
    Bug("rows of the first block", "cross_entropy.cuh", "(long long)blockIdx.x * WARPS + warp", "warp"),
    Bug("first block makes the loss", "cross_entropy.cuh", "place[0] != gridDim.x - 1", "place[0] != 0"),
    Bug("losses read before they are there", "cross_entropy.cuh", "parts[warp] = mine;\n  __syncthreads();", "parts[warp] = mine;"),
    Bug("gradients swapped", KERNELS, "sum_dy = a.dy, sum_dy_xhat = a.dy_xhat", "sum_dy = a.dy_xhat, sum_dy_xhat = a.dy"),
    Bug("unbiased left out", KERNELS, "batch_var * (M)unbiased - var", "batch_var - var"),
    Bug("Nesterov's step is momentum's", UPDATES, "nesterov != 0 ? g + keep * v.first : v.first", "v.first"),
    Bug("root of the second moment", UPDATES, "sqrt(v.second) / root", "sqrt(v.second)"),
    Bug("last product in the accumulator", KERNELS, "share_dy_xhat = share.dy_xhat", "share_dy_xhat = share.dy"),
    Bug("rows and columns swapped", LAYOUT, "self.inner, self.rows, self.columns", "self.inner, self.columns, self.rows"),
    Bug("gamma and beta swapped", PORTABLE, "return (*m, g, b, affine", "return (*m, b, g, affine"),
    Bug("dy in its own order", CALLS, "(memory(dy, dense.order),)", "(memory(dy, tuple(range(dy.ndim))),)"),
    Bug("result in memory's order", LAYOUT, ".transpose(tuple(self.order.index(i) for i in range(len(self.order))))", ".transpose(self.order)"),
    Bug("count of rows", LAYOUT, "return self.outer * self.inner", "return self.outer"),
    Bug("sums swapped", PORTABLE, "return sums[0], sums[1]", "return sums[1], sums[0]"),
    Bug("dy and x swapped", PORTABLE, 'kernel("input_gradient")(dy, x.flat,', 'kernel("input_gradient")(x.flat, dy,'),
    Bug("too few shares", PORTABLE, "device.cupy.empty((4, x.rows, x.channels, x.columns)", "device.cupy.empty((4, 1, x.channels, 1)"),
    Bug("strided memory not copied", LAYOUT, "(x if x.flags.c_contiguous else x.copy(order=\"C\")).reshape(-1)", "x.base.reshape(-1)[: x.size]"),
    Bug("memory in an order of its own", LAYOUT, "tuple(x.shape[i] for i in order), order.index(axis)", "tuple(x.shape[i] for i in order), axis"),
    Bug("slots swapped", OPTIMIZERS, "p, first, second = (*(a", "p, second, first = (*(a"),
    Bug("L2 beside decoupled decay", OPTIMIZERS, "leaf._replace(decay=0.0, shrink", "leaf._replace(shrink"),
    Bug("losses summed", "cross_entropy.cuh", "*loss = mine / (M)rows", "*loss = mine"),
    Bug("not on the array's device", "device.py", "with x.device:", "if True:"),
    Bug("value read on the host", CALLS, "return loss, dlogits", "float(loss); return loss, dlogits"),
    Bug("barrier missing in the tree", GENERATED, "_REDUCE(_block);\n      }\n      __syncthreads();", "_REDUCE(_block);\n      }"),
    Bug("shared memory not written", GENERATED, "    _sdata[_tid] = _s;", "    if (_tid < 100) _sdata[_tid] = _s;"),
    Bug("tree cut short", GENERATED, "_block = 512 / 2", "_block = 512 / 4"),
    Bug("loop past its end", GENERATED, "_j < _in_ind.size()", "_j <= _in_ind.size()"),
]  # fmt: skip


ON_WIDE_LOADS = [
    Bug("cluster does not wait", TILES, "cluster_sync();\n    for (int t", "__syncthreads();\n    for (int t"),
    Bug("base not taken off", SPLIT, "(s.mean - base[n]) + s.rest", "s.mean + s.rest"),
    Bug("first block makes the result", "split.cuh", "tile.layout.parts - 1", "0"),
    Bug("sum before all warps are there", TILES, "  }\n  __syncthreads();\n  for (int t", "  }\n  for (int t"),
    Bug("sum of one block", TILES, "*cluster_peer(part + t, rank)", "part[t]"),
    Bug("place in a plane lost", TILES, "+ (i - n * layout.vectors)", ""),
    Bug("lanes mixed", TILES, "offset >= lanes", "offset >= 1"),
    Bug("warp not summed", TILES, "offset >= lanes", "offset > lanes"),
    Bug("remainder lost", TILES, "fma(-rest, scale, options", "fma(0.0f, scale, options"),
    Bug("constant of dx without remainder", TILES, "fma(-by_x, c.rest, -c.scale * mean_dy)", "-c.scale * mean_dy"),
    Bug("ReLU swallows NaN", TILES, "relu && y <= 0 ? 0 : y", "relu && !(y > 0) ? 0 : y"),
    Bug("mask lost", TILES, "relu && affine(x) <= 0 ? 0 : dy", "dy"),
    Bug("neighbour's channel", TILES, "ROWS ? column * VECTOR + k : column", "ROWS ? column * VECTOR : column"),
    Bug("no shift", HELD, "(float)v.value[n] - (float)before.value[ROWS ? n : 0]", "(float)v.value[n]"),
    Bug("outlying shift not corrected", HELD, "float off = square[n] * inv_count;", "float off = 0;"),
    Bug("block leaves early", HELD, "if (CLUSTER > 1) cluster_wait();", ""),
    Bug("arrives before it has read", TILES, "    cluster_sync();\n    for (int t", "    cluster_arrive();\n    for (int t"),
    Bug("never arrives", "held_backward.cuh", "if (CLUSTER > 1) cluster_arrive();", ""),
    Bug("rest of a batch taken twice", TILES, "if (i + b * tile.step < tile.stop) take", "take"),
    Bug("rest of a batch lost", TILES, "if (i >= tile.stop) return;", "return;"),
    Bug("whole batch too many", TILES, "i + (COUNT - 1) * tile.step < tile.stop; i +=", "i < tile.stop; i +="),
    Bug("item of another thread", TILES, "ask(i + b * tile.step);\n#pragma", "ask(i + b);\n#pragma"),
    Bug("counted from one past the last", TILES, "at(layout.items - 1 - i)", "at(layout.items - i)"),
    Bug("reads on one way, stores on the other", "pass_forward.cuh", "y[tile.back(i)] = v;", "y[tile.at(i)] = v;"),
    Bug("every block writes the same values", HELD, "y[tile.at(i)] = v;", "y[tile.at(i - tile.first)] = v;"),
    Bug("dy not masked where it is held", "held_backward.cuh", "v.dy.value[n] = T(masked);", ""),
    Bug("Chan's term left out", SPLIT, "delta * delta * (1 - part)", "0"),
    Bug("weight of a batch", SPLIT, "(float)taken / count)", "0.5f)"),
    Bug("shares not weighted", SPLIT, "s.weight * all * (s.var", "0.5f * (s.var"),
    Bug("first value not taken off", SPLIT, "if (part == 1) mean = value[0];", ""),
    Bug("half of a batch", "split_sums.cuh", "i += BATCH / 2 * tile.step", "i += BATCH * tile.step"),
    Bug("ticket drawn by every thread", "split.cuh", "if (threadIdx.x == 0) ticket[0]", "ticket[0]"),
    Bug("mask lost in a pass", "pass_backward.cuh", "channel[c].masked((float)v.dy.value[n], value, options.relu)", "(float)v.dy.value[n]"),
    Bug("given statistics not told", WIDE, "sums is None))", "False))"),
    Bug("sums swapped", WIDE, "*(sums or m[:2])", "*(sums[::-1] if sums else m[:2])"),
    Bug("tickets not from zero", WIDE, "device.cupy.zeros(plan", "device.cupy.empty(plan"),
    Bug("too few blocks", RULE, "return self.wide.tiles(self.lanes) * self.parts", "return self.wide.tiles(self.lanes)"),
    Bug("factor one too small", RULE, "// w.vectors + 1", "// w.vectors"),
]  # fmt: skip


def _some(bugs: list[Bug], wide: bool, often: int) -> Iterator[object]:
    """The first bugs always, the others with the grid."""
    for i, bug in enumerate(bugs):
        name = f"{bug.name}{' on wide loads' if wide else ''}"
        yield pytest.param(bug, wide, id=name, marks=pytest.mark.grid if i >= often else ())


@pytest.mark.parametrize(
    ("bug", "wide"), [*_some([*SOME, *REST], wide=False, often=len(SOME)), *_some(ON_WIDE_LOADS, wide=True, often=3)]
)
def test_caught(
    stand_in: ModuleType, kernels: ModuleType, device: Device, bug: Bug, wide: bool, tmp_path: Path
) -> None:
    assert _outcome(stand_in, device, bug, tmp_path, wide=wide) is not None, f"{bug.name} went unseen"


def test_nothing_planted_nothing_caught(
    stand_in: ModuleType, kernels: ModuleType, device: Device, tmp_path: Path
) -> None:
    assert _outcome(stand_in, device, Bug("none", CALLS, "", ""), tmp_path) is None


def _outcome(stand_in: ModuleType, device: Device, bug: Bug, folder: Path, *, wide: bool = False) -> str | None:
    """What the checks say of the bug; None where they pass. In a process of its own, which a bug may end."""
    words, child_words = FORK.Pipe(duplex=False)
    child = FORK.Process(target=lambda: child_words.send(_said(stand_in, device, bug, folder, wide=wide)))
    child.start()
    child.join()
    if child.exitcode < 0:
        return f"the process ended by signal {-child.exitcode}"
    assert child.exitcode == 0, "the check itself failed: see standard error"
    said: str | None = words.recv()
    return said


def _said(stand_in: ModuleType, device: Device, bug: Bug, folder: Path, *, wide: bool) -> str | None:
    """The first message of the checks, over chips and schedules."""
    from .build import HostError
    from .memory import use

    module = _planted(stand_in, bug, folder)
    chips = ("sm_90", "sm_90 without shared memory") if wide else ("sm_60",)
    try:
        for check, chip, schedule in itertools.product(smallest(wide=wide), chips, ("lowest", "highest")):
            stand_in.schedule = schedule
            use(chip)
            module.wide.chip_of.cache_clear()
            try:
                check(module, device)
            except (AssertionError, HostError, ValueError) as error:
                return str(error)[:1000]
    finally:
        use("sm_90")
    return None


def _planted(stand_in: ModuleType, bug: Bug, folder: Path) -> ModuleType:
    """A copy of the kernels with the bug in its file, on the stand-in."""
    copy = folder / "planted"
    shutil.copytree(FOLDER, copy, dirs_exist_ok=True)
    if bug.file == GENERATED:
        stand_in.rewrite = _rewriter(bug)
    elif bug.right:
        text = (copy / bug.file).read_text()
        assert bug.right in text, f"{bug.name}: the text has changed"
        (copy / bug.file).write_text(text.replace(bug.right, bug.wrong))
    name = "bnengine.kernels.planted"
    spec = importlib.util.spec_from_file_location(name, copy / "__init__.py", submodule_search_locations=[str(copy)])
    module = importlib.util.module_from_spec(spec)
    for old in [key for key in sys.modules if key.startswith(name)]:
        del sys.modules[old]
    sys.modules[name] = module
    spec.loader.exec_module(module)
    module.device.cupy = stand_in
    return module


def _rewriter(bug: Bug) -> Callable[[str], str]:
    def rewrite(code: str) -> str:
        assert bug.right in code or "_type_reduce" not in code, f"{bug.name}: CuPy's source has changed"
        return code.replace(bug.right, bug.wrong)

    return rewrite
