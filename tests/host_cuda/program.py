"""`python -m host_cuda.program ...` is `bnengine ...` with the host in the place of the GPU, and all that a benchmark
measures by so small that it measures nothing."""

from __future__ import annotations

import functools
import importlib.util
import sys


def main() -> int:
    import cupyx

    from . import library, memory

    dir(cupyx)  # loads itself when it is looked at, and has to find the real CuPy then
    library.install()
    memory.waiting_allowed = True
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(1)
        torch.compile = functools.partial(torch.compile, backend="aot_eager")  # without a C++ compiler's minute
    _make_small()
    from bnengine import cli

    with memory.Device():  # the current one
        return cli.main(sys.argv[1:])


def _make_small() -> None:
    from bnengine.bench.gpu import events, normalization, steps
    from bnengine.bench.steps import Network

    events.COPIED, events.WARM_UPS, events.LOOP = 1 << 16, 1, 2
    steps.NETWORKS = (Network((12, 9, 5), 16),)
    normalization.FIXED = (normalization.Shape((2, 6, 6, 4), -1),)


if __name__ == "__main__":
    sys.exit(main())
