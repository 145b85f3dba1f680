"""The proof can fail: bugs planted in device code, kernels, CuPy's source and call sites are all caught."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

import bnengine.kernels

from .checks import Device, smallest

FOLDER = Path(bnengine.kernels.__file__).parent / "cuda"
GENERATED = "CuPy's own source"


class Bug(NamedTuple):
    name: str
    file: str
    right: str
    wrong: str


STATISTICS, NETWORK, UPDATES = "normalization.cuh", "network.cuh", "updates.cuh"
KERNELS, LAYOUT, CALLS, OPTIMIZERS = "sources.py", "layout.py", "__init__.py", "updates.py"

SOME = [
    Bug("wrong tail", STATISTICS, "n < outer && j < inner", "n <= outer && j < inner"),
    Bug("lost ReLU mask", STATISTICS, "relu && affine(x) <= 0 ? M(0) : dy", "dy"),
    Bug("wrong divisor", STATISTICS, "mean /= taken", "mean /= IN_FLIGHT"),
    Bug("remainder lost", STATISTICS, "fma(-remainder, scale, beta)", "beta"),
    Bug(
        "swapped statistics",
        CALLS,
        "offset, var, *m, axis=(0, 2)",
        "offset, var, m.mean, m.var, m.remainder, axis=(0, 2)",
    ),
    Bug("wrong grid", CALLS, "relu, *x.walk, y, size=x.threads)", "relu, *x.walk, y, size=x.threads - 1)"),
    Bug("buffer too small", CALLS, "y = device.cupy.empty(x.flat.shape,", "y = device.cupy.empty(x.flat.size - 1,"),
    Bug("missing barrier", GENERATED, "_sdata[_tid] = _s;\n    __syncthreads();", "_sdata[_tid] = _s;"),
    Bug("divergent barrier", GENERATED, "_REDUCE(_block);", "_REDUCE(_block); __syncthreads();"),
    Bug("softmax not shifted", NETWORK, "b.total * exp(b.top - both.top)", "b.total"),
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
    Bug("end of a leaf overrun", UPDATES, "min(start + CHUNK, leaf.size)", "start + CHUNK"),
    Bug("step of a warp", UPDATES, "long long j = i + n * blockDim.x;", "long long j = i + n * 32;"),
    Bug("decay of a neighbour", OPTIMIZERS, "leaf.g.size, leaf.decay, leaf.shrink)", "leaf.g.size, leaves[0].decay, leaf.shrink)"),
    Bug("size of a neighbour", OPTIMIZERS, "leaf.g.data.ptr, first, second, leaf.g.size", "leaf.g.data.ptr, first, second, leaves[0].g.size"),
    Bug("too few blocks", OPTIMIZERS, "-(-leaf.g.size // CHUNK)", "leaf.g.size // CHUNK + (leaf.g.size < CHUNK)"),
    Bug("leaves beyond the table left out", OPTIMIZERS, "range(0, len(group), LEAVES)", "range(0, min(len(group), LEAVES), LEAVES)"),
    Bug("strided leaf not written back", OPTIMIZERS, "if values is not a:", "if False:"),
    Bug("label beside its class", KERNELS, "M(label == column)", "M(label == column + 1)"),
    Bug("label outside passes", KERNELS, "bool outside = label < 0 || label >= classes;", "bool outside = label < 0;"),
    Bug("gradients swapped", KERNELS, "sum_dy = a.dy, sum_dy_xhat = a.dy_xhat", "sum_dy = a.dy_xhat, sum_dy_xhat = a.dy"),
    Bug("unbiased left out", KERNELS, "batch_var * (M)unbiased - var", "batch_var - var"),
    Bug("Nesterov's step is momentum's", UPDATES, "nesterov != 0 ? g + keep * v.first : v.first", "v.first"),
    Bug("root of the second moment", UPDATES, "sqrt(v.second) / root", "sqrt(v.second)"),
    Bug("last product in the accumulator", KERNELS, "share_dy_xhat = share.dy_xhat", "share_dy_xhat = share.dy"),
    Bug("rows and columns swapped", LAYOUT, "self.inner, self.rows, self.columns", "self.inner, self.columns, self.rows"),
    Bug("gamma and beta swapped", CALLS, "return (*m, g, b, gamma is not None", "return (*m, b, g, gamma is not None"),
    Bug("dy in its own order", CALLS, "dy = memory(dy, dense.order)", "dy = memory(dy, tuple(range(dy.ndim)))"),
    Bug("result in memory's order", LAYOUT, ".transpose(tuple(self.order.index(i) for i in range(len(self.order))))", ".transpose(self.order)"),
    Bug("count of rows", CALLS, "count = dense.outer * dense.inner", "count = dense.outer"),
    Bug("sums swapped", CALLS, "return sums[0], sums[1]", "return sums[1], sums[0]"),
    Bug("dy and x swapped", CALLS, 'kernel("input_gradient")(dy, x.flat,', 'kernel("input_gradient")(x.flat, dy,'),
    Bug("too few shares", CALLS, "device.cupy.empty((4, x.rows, x.channels, x.columns)", "device.cupy.empty((4, 1, x.channels, 1)"),
    Bug("strided memory not copied", LAYOUT, "(x if x.flags.c_contiguous else x.copy(order=\"C\")).reshape(-1)", "x.base.reshape(-1)[: x.size]"),
    Bug("memory in an order of its own", LAYOUT, "tuple(x.shape[i] for i in order), order.index(axis)", "tuple(x.shape[i] for i in order), axis"),
    Bug("slots swapped", OPTIMIZERS, "p, first, second = (*(a", "p, second, first = (*(a"),
    Bug("L2 beside decoupled decay", OPTIMIZERS, "leaf._replace(decay=0.0, shrink", "leaf._replace(shrink"),
    Bug("losses summed", CALLS, 'kernel("mean_loss")(row_loss, rows, loss)', 'kernel("mean_loss")(row_loss, 1, loss)'),
    Bug("not on the array's device", "device.py", "with x.device:", "if True:"),
    Bug("value read on the host", CALLS, "rows, classes, dlogits, row_loss)", "rows, classes, dlogits, row_loss); float(top[0])"),
    Bug("barrier missing in the tree", GENERATED, "_REDUCE(_block);\n      }\n      __syncthreads();", "_REDUCE(_block);\n      }"),
    Bug("shared memory not written", GENERATED, "    _sdata[_tid] = _s;", "    if (_tid < 100) _sdata[_tid] = _s;"),
    Bug("tree cut short", GENERATED, "_block = 512 / 2", "_block = 512 / 4"),
    Bug("loop past its end", GENERATED, "_j < _in_ind.size()", "_j <= _in_ind.size()"),
]  # fmt: skip


@pytest.mark.parametrize("bug", SOME, ids=lambda bug: bug.name)
def test_caught(stand_in: ModuleType, kernels: ModuleType, device: Device, bug: Bug, tmp_path: Path) -> None:
    assert _outcome(stand_in, device, bug, tmp_path) is not None, f"{bug.name} went unseen"


@pytest.mark.grid
@pytest.mark.parametrize("bug", REST, ids=lambda bug: bug.name)
def test_caught_as_well(stand_in: ModuleType, kernels: ModuleType, device: Device, bug: Bug, tmp_path: Path) -> None:
    assert _outcome(stand_in, device, bug, tmp_path) is not None, f"{bug.name} went unseen"


def test_nothing_planted_nothing_caught(
    stand_in: ModuleType, kernels: ModuleType, device: Device, tmp_path: Path
) -> None:
    assert _outcome(stand_in, device, Bug("none", CALLS, "", ""), tmp_path) is None


def _outcome(stand_in: ModuleType, device: Device, bug: Bug, folder: Path) -> str | None:
    """What the checks say of the bug, on the first schedule that shows it; None where they pass."""
    from .build import HostError

    module = _planted(stand_in, bug, folder)
    for check in smallest():
        for schedule in ("lowest", "highest"):
            stand_in.schedule = schedule
            try:
                check(module, device)
            except (AssertionError, HostError, ValueError) as error:
                return str(error)
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
