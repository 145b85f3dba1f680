"""`python -m host_cuda.program ...` is `python ...` with the host in the place of the GPU, and all that is measured so
small that it measures nothing."""

from __future__ import annotations

import functools
import importlib.util
import runpy
import sys


def main() -> None:
    import cupyx

    from . import library, memory

    dir(cupyx)  # loads itself when it is looked at, and has to find the real CuPy then
    library.install()
    memory.waiting_allowed = True
    alone = "pytest" in sys.argv or "bnengine" in sys.argv[3:]  # as in `--contenders bnengine`
    if importlib.util.find_spec("torch") and not alone:
        import torch

        torch.set_num_threads(1)
        torch.compile = functools.partial(torch.compile, backend="aot_eager")  # without a C++ compiler's minute
    _make_small()
    del sys.argv[0]
    with memory.Device():  # the current one
        if sys.argv[0] == "-m":
            del sys.argv[0]
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")


def _make_small() -> None:
    from bnengine.bench.gpu import events, normalization, steps
    from bnengine.bench.networks import Network

    from . import checks, streams

    checks.REPEATS, checks.CHAINED = 10, ((90, 8), (2, 3, 10, 12))
    checks.LARGE, checks.BEYOND = (3, 4, 5, 6), (33, 4)
    streams.cuda.runtime.getDeviceCount = lambda: 2
    events.COPIED, events.WARM_UPS, events.LOOP = 1 << 16, 1, 2
    steps.NETWORKS = (Network((12, 9, 5), 16),)
    normalization.FIXED = (normalization.Shape((2, 6, 6, 4), -1),)


if __name__ == "__main__":
    main()
