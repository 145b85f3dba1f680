"""The kernels on wide loads, on chips of several kinds: each against float64, and the rule that chooses them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

from bnengine.kernels.reference import Affine

from .checks import DTYPES, LAYOUTS, SHAPES, Case, Device, check_normalization, check_special_values, wide_cases

SCHEDULES = ("lowest", "highest", "rotating", "random")
CHIPS = ("sm_75", "sm_80", "sm_90", "sm_90 without shared memory")
WIDE = [dtype for dtype in DTYPES if dtype != "float64"]

SOME = [*itertools.product(wide_cases(), CHIPS[2:]), (Case((33, 5, 7), 1, "bfloat16", "strided"), "sm_80")]

SHARED = (
    *SHAPES,
    ((4300, 4), 1),  # rows whose tile several blocks share
    ((3, 2, 100, 84), 1),  # planes likewise
    ((700, 72), 1),  # rows that clusters hold
    ((9, 3, 64, 64), 1),  # planes likewise
    ((130, 20), 1),  # the last tile is not full
)
WHOLE = [
    (Case(shape, axis, dtype, layout, relu=relu, parameters=relu), chip)
    for (shape, axis), dtype, layout, chip, relu in itertools.product(SHARED, WIDE, LAYOUTS, CHIPS, (False, True))
    if relu == (layout != "C")
]


@pytest.mark.parametrize(
    ("number", "case", "chip"),
    [
        *((n, *pair) for n, pair in enumerate(SOME)),
        *(pytest.param(n, *pair, marks=pytest.mark.grid) for n, pair in enumerate(WHOLE)),
    ],
    ids=str,
)
def test_normalization(
    kernels: ModuleType,
    stand_in: ModuleType,
    device: Device,
    on_chip: Callable[[str], None],
    number: int,
    case: Case,
    chip: str,
) -> None:
    on_chip(chip)
    stand_in.schedule = SCHEDULES[number % len(SCHEDULES)]
    check_normalization(kernels, device, case)


@pytest.mark.parametrize("chip", CHIPS[2:])
def test_special_values(kernels: ModuleType, device: Device, on_chip: Callable[[str], None], chip: str) -> None:
    on_chip(chip)
    check_special_values(kernels, device)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_same_bits_on_every_schedule(
    kernels: ModuleType, stand_in: ModuleType, device: Device, on_chip: Callable[[str], None], schedule: str
) -> None:
    """Blocks and warps that come in another order give the same sums, the last block's included."""
    x = device.put(np.random.default_rng(0).standard_normal((4300, 4)).astype(np.float32))
    on_chip("sm_90 without shared memory")

    def bits() -> list[bytes]:
        y, m = kernels.forward(x, Affine(None, None, 1e-5, False), 1)
        dx, sums = kernels.backward(y, x, m, Affine(None, None, 1e-5, False), 1)
        return [device.get(v).tobytes() for v in (y, *m, dx, *sums)]

    first = bits()
    stand_in.schedule = schedule
    assert bits() == first


def test_two_blocks_of_a_large_tile_find_room(kernels: ModuleType, device: Device) -> None:
    """Where a kernel asks for more shared memory than any may have, the multiprocessor gives all it can to it."""
    plan = kernels.plans.held(kernels.plans.wide(8192, 1024, 1, 4), kernels.wide.chip_of(0), 1)
    kernel = kernels.wide._kernel("held_forward", "float32", plan.wide.vector, True, plan.threads, plan.cluster)
    assert plan.shared > kernels.device.SHARED
    kernels.device.allow_shared(kernel, 0, plan.shared)
    assert (kernel.max_dynamic_shared_size_bytes, kernel.preferred_shared_memory_carveout) == (plan.shared, 100)


# ---- the rule

H100 = {"architecture": 90, "multiprocessors": 132, "shared": 227 * 1024}
LARGE = (
    (32, 64, 12544),
    (256, 256, 3136),
    (256, 2048, 49),
    (8192, 1024, 1),
    (65536, 64, 1),
    (128, 512, 1),
    (4096, 4096, 1),
    (2, 3, 10**9),
    (1, 1, 2**31),
    (2**20, 8, 64),
)


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_plans_fit_the_chip(kernels: ModuleType, shape: tuple[int, int, int], itemsize: int) -> None:
    """On chip: within a block's half of the shared memory. Split: every block has values, no thread too many."""
    plans = kernels.plans
    for chip in (plans.Chip(**H100), plans.Chip(80, 108, 163 * 1024), plans.Chip(75, 40, 64 * 1024)):
        wide = plans.wide(*shape, itemsize)
        assert wide.vector * itemsize in (16, 8, itemsize)
        split = plans.split(wide, chip)
        for_each = split.threads // split.lanes
        assert (split.parts - 1) * for_each < wide.items
        assert wide.items <= split.parts * for_each * 2 * plans.MOST
        assert split.shared <= 48 * 1024
        assert split.blocks < 2**31
        for arrays in (1, 2):
            held = plans.held(wide, chip, arrays)
            if held is None:
                continue
            assert held.cluster == held.parts
            assert held.cluster in chip.clusters
            assert 2 * (held.shared + 1024) <= chip.shared + 1024
            each = -(-wide.items // (held.cluster * held.threads // held.lanes))
            assert held.shared >= arrays * each * held.threads * wide.vector * itemsize


def test_what_the_rule_chooses(kernels: ModuleType) -> None:
    plans = kernels.plans
    h100, a100 = plans.Chip(**H100), plans.Chip(80, 108, 163 * 1024)

    def chosen(shape: tuple[int, int, int], chip: object, arrays: int = 1) -> object:
        plan = plans.held(plans.wide(*shape, 4), chip, arrays)
        return plan and plan.cluster

    assert chosen((128, 512, 1), h100) == 1
    assert chosen((8192, 1024, 1), h100) == 8
    assert chosen((32, 64, 3136), h100) == 4
    assert chosen((32, 64, 3136), h100, 2) == 8
    assert chosen((32, 64, 3136), a100) is None, "no clusters there"
    assert chosen((65536, 64, 1), h100) is None, "no tile fits"
    for shape, itemsize, threads in (
        *(((32, 2048, 49), 4, 128), ((32, 2048, 49), 2, 128), ((32, 1024, 196), 4, 256), ((32, 64, 3136), 4, 512)),
        *(
            ((128, 512, 1), 4, 128),
            ((8192, 1024, 1), 4, 512),
            ((8192, 1024, 1), 2, 256),
        ),  # rows of halves: many channels
    ):
        assert plans.held(plans.wide(*shape, itemsize), h100, 1).threads == threads, shape
    for shape, blocks in (((256, 64, 12544), 3136), ((16, 64, 65536), 1152), ((65536, 64, 1), 396)):
        split = plans.split(plans.wide(*shape, 4), h100)
        assert split.blocks == blocks, shape
        assert -(-blocks // (3 * 132)) * 3 * 132 - blocks < 64, "whole waves"
    assert plans.wide(4, 0, 5, 4) is plans.wide(0, 4, 1, 4) is None
    assert plans.wide(4, 6, 1, 4).vector == 2
    assert plans.wide(4, 8, 1, 4, addresses=8).vector == 2
    assert plans.wide(4, 8, 1, 4, addresses=4).vector == 1


@pytest.mark.parametrize("vectors", [1, 2, 3, 7, 49, 784, 3136, 2**20 - 1, 2**20, 2**30 - 1])
def test_division_by_multiplication(kernels: ModuleType, vectors: int) -> None:
    plans = kernels.plans
    wide = plans.wide(1, 1, 2, 4)._replace(vectors=vectors)
    told = plans.layout(plans.split(wide, plans.Chip(**H100)))
    largest = 2**31 - 1
    near = {k * vectors + d for k in (0, 1, largest // vectors // 2, largest // vectors) for d in (-1, 0, 1)}
    for i in (n for n in {*near, largest} if 0 <= n <= largest):
        product = i * int(told["factor"])
        assert product < 2**63
        assert product >> int(told["shift"]) == i // vectors
