"""How cost grows: one size varies, the others stay."""

from __future__ import annotations

from collections.abc import Iterator

from . import networks, normalization, steps
from .networks import Network
from .normalization import Shape
from .records import Row
from .timing import OURS, PYTORCH, Builder, Case

FAMILIES = (OURS, PYTORCH)
"""Who is measured."""

ROWS = (64, 256, 1024, 4096, 16384)
CHANNELS = (16, 64, 256, 1024, 4096)
DEPTHS = (1, 2, 4, 8)
BATCHES = (32, 128, 512, 2048)


Point = tuple[Row, Case, dict[str, Builder], float]
"""What varies, a case of it, its contenders, and the pause that they take."""


def points(dtype: str, seed: int, pause: float) -> Iterator[Point]:
    """Rows and channels of batch normalisation, hidden layers and batch of a training step."""
    shapes = [("rows", n, "256 channels", Shape((n, 256))) for n in ROWS]
    shapes += [("channels", c, "1024 rows", Shape((1024, c))) for c in CHANNELS]
    for varies, value, rest, shape in shapes:
        yield _about(varies, value, rest), normalization.Case(shape, dtype, seed), normalization.BUILDERS, pause
    sizes = [("hidden layers", d, "128 wide", Network((784, *[128] * d, 10), 128)) for d in DEPTHS]
    sizes += [("batch", n, "3 layers of 256", Network((784, 256, 256, 256, 10), n)) for n in BATCHES]
    for varies, value, rest, network in sizes:
        yield _about(varies, value, rest), networks.Case(network, dtype, seed), steps.builders(network), steps.PAUSE


def _about(varies: str, value: int, rest: str) -> Row:
    case = f"{varies} {value}, {rest}"
    return {"group": "scaling", "case": case, "varies": varies, "value": value, "rest": rest}
