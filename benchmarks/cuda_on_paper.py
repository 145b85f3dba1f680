"""What the CUDA kernels should cost, from their machine code alone: the tables of docs/cuda_on_paper.md.

    python benchmarks/cuda_on_paper.py > docs/cuda_on_paper.md

Needs the dependency group cuda-proof, and nvdisasm (`pip install nvidia-cuda-nvdisasm`) for the instructions; no GPU.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from host_cuda import source

from bnengine.kernels.cuda import device, plans, sources
from bnengine.kernels.cuda.plans import Chip, Plan


class Machine(NamedTuple):
    """A chip as its maker describes it."""

    name: str
    chip: Chip
    shared: int
    """Bytes of a multiprocessor."""
    bandwidth: float
    """Bytes a second."""
    clock: float


MACHINES = (
    Machine("sm_80", Chip(80, 108, 163 * 1024), 164 * 1024, 2.04e12, 1.41e9),
    Machine("sm_90", Chip(90, 132, 227 * 1024), 228 * 1024, 3.35e12, 1.70e9),
)
"""A100 (80 GB) and H100 (SXM)."""

DTYPES = {"float32": 4, "float16": 2, "bfloat16": 2}

COPY = 0.92
"""Of the bandwidth, what a copy reaches: assumed."""
LATENCY = 0.8e-6
"""Seconds from a load to its value under load: assumed."""

MINIMUM = {"held_forward": 2, "held_backward": 3, "split_moments": 1, "split_sums": 2, "pass_forward": 2}
MINIMUM["pass_backward"] = 3
"""Times that a kernel moves the array: each value it reads or writes, once."""

SHAPES = {
    "(32, 64, 112, 112)": (32, 64, 12544),
    "(32, 256, 56, 56)": (32, 256, 3136),
    "(32, 512, 28, 28)": (32, 512, 784),
    "(32, 1024, 14, 14)": (32, 1024, 196),
    "(32, 2048, 7, 7)": (32, 2048, 49),
    "(256, 64, 112, 112)": (256, 64, 12544),
    "(16, 64, 256, 256)": (16, 64, 65536),
    "(32, 56, 56, 256), channels last": (32 * 3136, 256, 1),
    "(128, 512)": (128, 512, 1),
    "(8192, 1024)": (8192, 1024, 1),
    "(65536, 64)": (65536, 64, 1),
    "(4096, 4096)": (4096, 4096, 1),
}


def fingerprint() -> str:
    """Of all kernels and the rule: what these tables were made from."""
    text = repr(sorted(sources.fingerprints().items())) + Path(plans.__file__).read_text(encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ---- what the compiler and the disassembler say


class Code(NamedTuple):
    registers: int
    spilled: int
    instructions: float | None
    """For each value, in the loops over values."""
    in_flight: int
    """Bytes that a thread asks for before it uses the first of them."""


def code(name: str, dtype: str, vector: int, rows: bool, threads: int, cluster: int, architecture: int) -> Code:
    constants = {"VECTOR": vector, "ROWS": int(rows), "THREADS": threads, "CLUSTER": cluster}
    built = source.cubin(device.raw(name, (("T", dtype),), **constants).code, architecture)
    itemsize = 4 if dtype == "float32" else 2
    arrays = 2 if name in ("held_backward", "split_sums", "pass_backward") else 1
    text, bits = "" if nvdisasm() is None else disassembled(built.binary), itemsize * vector * 8
    counts = [instructions / (vectors * vector) for instructions, vectors in loops(text, bits, arrays)]
    return Code(built.registers, built.spilled, sum(counts) or None, in_flight(text, bits) * itemsize * vector)


def in_flight(assembly: str, bits: int) -> int:
    """Loads of so many bits that a thread has asked for when it first uses one of them, at the most."""
    most, waiting = 0, dict[int, int]()  # by register: the load that will fill it
    for number, line in enumerate(assembly.splitlines()):
        found = re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?);", line)
        registers = [] if found is None else [int(register) for register in re.findall(r"\bR(\d+)\b", found[2])]
        if found is None or not registers:
            continue
        if found[1].startswith("LDG") and "CONSTANT" in found[1] and _bits(found[1]) == bits:
            waiting |= dict.fromkeys(range(registers[0], registers[0] + max(1, bits // 32)), number)
            continue
        if found[1].startswith("ST"):  # the last that is named begins what is stored
            registers += range(registers[-1], registers[-1] + max(1, _bits(found[1]) // 32))
        used = {waiting[register] for register in registers if register in waiting}
        if used:
            most = max(most, len(set(waiting.values())))
            waiting = {register: load for register, load in waiting.items() if load not in used}
    return most


def _bits(operation: str) -> int:
    """What a load or store moves: 32 where it does not say."""
    widths = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128}
    return next((widths[part] for part in operation.split(".") if part in widths), 32)


def nvdisasm() -> str | None:
    return shutil.which("nvdisasm") or next(
        (str(p) for p in Path(sys.prefix).glob("lib/*/site-packages/nvidia/*/bin/nvdisasm")), None
    )


def disassembled(binary: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary + b"\0")  # CuPy leaves the last byte out
        file.flush()
        return subprocess.run([str(nvdisasm()), "-c", file.name], capture_output=True, text=True, check=True).stdout


def loops(assembly: str, bits: int, arrays: int) -> Iterator[tuple[int, int]]:
    """(instructions, vectors of x) of each unrolled loop over the vectors of so many arrays."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in assembly.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            instructions.append(found[1])
    spans = []
    for i, text in enumerate(instructions):
        target = re.search(r"BRA.*?`\((\.L_x_\d+)\)", text)
        if target and labels.get(target[1], i + 1) <= i:
            spans.append((labels[target[1]], i))
    best: dict[str, tuple[int, int]] = {}
    for start, stop in spans:
        if any((a, b) != (start, stop) and start <= a and b <= stop for a, b in spans):
            continue
        body = instructions[start : stop + 1]
        width = rf"\.(?:E\.)?(?:\w+\.)*{bits}\b" if bits > 32 else ""
        count = {
            op: sum(bool(re.search(rf"\b{op}\b{width}", line)) for line in body) for op in ("LDG", "STG", "LDS", "STS")
        }
        phase = "+".join(op for op, n in count.items() if n)
        vectors = count["STG"] or (count["STS"] or max(count["LDG"], count["LDS"])) // arrays
        if vectors < 2 or phase in ("LDS+STS",):
            continue
        best[phase] = max(best.get(phase, (0, 0)), (len(body), vectors), key=lambda b: (b[1], b[0]))
    yield from best.values()


# ---- the model


def occupancy(built: Code, threads: int, shared: int, machine: Machine) -> int:
    """Blocks that a multiprocessor holds at once."""
    warps = threads // 32
    by_registers = 65536 // (-(-built.registers // 8) * 8 * 32 * warps)
    return min(by_registers, 64 // warps, 32, machine.shared // (shared + 1024))


def fraction(name: str, built: Code, threads: int, shared: int, itemsize: int, machine: Machine) -> float | None:
    """Of a copy's bandwidth, counted on what the kernel moves: the model, no measurement.

    The array is moved in the time of its bytes, or of the instructions where these take longer; a kernel that holds
    its tile does them one after the other, save for what other blocks of the multiprocessor do meanwhile. Too few
    bytes in flight stretch the former.
    """
    blocks = occupancy(built, threads, shared, machine)
    if built.instructions is None or not blocks:
        return None
    moved = MINIMUM[name] * itemsize
    memory = moved / (COPY * machine.bandwidth)
    needed = COPY * machine.bandwidth / machine.chip.multiprocessors * LATENCY
    memory /= min(1, blocks * threads * built.in_flight / needed)
    issue = built.instructions / (machine.chip.multiprocessors * 4 * 32 * machine.clock)
    total = memory + issue / blocks if name.startswith("held") else max(memory, issue)
    return moved / (COPY * machine.bandwidth) / total


# ---- the tables


def kernels() -> Iterator[str]:
    yield "| kernel | layout, dtype | moves | registers sm_80, sm_90 | shared, KiB | blocks a multiprocessor | in flight, KiB | instructions a value | of a copy, model |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for name in MINIMUM:
        held = name.startswith("held")
        for rows in (False, True):
            for dtype, itemsize in DTYPES.items():
                threads, cells = _threads(held, rows, itemsize, 16 // itemsize), []
                for machine in MACHINES:
                    built = code(name, dtype, 16 // itemsize, rows, threads, 1, machine.chip.architecture)
                    shared = machine.chip.half if held else 0 if name.startswith("pass") else 16 * 1024
                    cells.append((built, shared, machine, fraction(name, built, threads, shared, itemsize, machine)))
                yield _row(name, rows, dtype, threads, cells)


def _threads(held: bool, rows: bool, itemsize: int, vector: int) -> int:
    """Of a block of a large tile."""
    return plans.HELD_THREADS[plans.many(rows, itemsize, vector)] if held else plans.SPLIT_THREADS


def _flying(built: Code, threads: int, shared: int, machine: Machine) -> float:
    """KiB that a multiprocessor has asked for when its threads use the first of them."""
    return occupancy(built, threads, shared, machine) * threads * built.in_flight / 1024


def narrow() -> Iterator[str]:
    """What is in flight for planes whose size allows no loads of 16 bytes: those of 14 x 14 and of 7 x 7."""
    machine = MACHINES[1]
    yield "| kernel | float32, 4 bytes | float16, 8 bytes | float16, 2 bytes | bfloat16, 8 bytes | bfloat16, 2 bytes |"
    yield "|---|---|---|---|---|---|"
    for name in MINIMUM:
        cells = []
        for dtype, vector in (("float32", 1), ("float16", 4), ("float16", 1), ("bfloat16", 4), ("bfloat16", 1)):
            threads = 128 if name.startswith("held") else plans.SPLIT_THREADS
            built = code(name, dtype, vector, False, threads, 1, machine.chip.architecture)
            spilled = " (spills)" if built.spilled else ""
            cells.append(f"{_flying(built, threads, 8 * 1024, machine):.0f}{spilled}")
        yield f"| `{name}` | " + " | ".join(cells) + " |"


def _row(name: str, rows: bool, dtype: str, threads: int, cells: list) -> str:
    spilled = " (spills)" if any(built.spilled for built, *_ in cells) else ""
    pairs = [
        ", ".join(str(built.registers) for built, *_ in cells) + spilled,
        ", ".join(f"{shared // 1024}" for _, shared, *_ in cells),
        ", ".join(str(occupancy(built, threads, shared, machine)) for built, shared, machine, _ in cells),
        ", ".join(f"{_flying(built, threads, shared, machine):.0f}" for built, shared, machine, _ in cells),
        ", ".join("-" if built.instructions is None else f"{built.instructions:.0f}" for built, *_ in cells),
        ", ".join("-" if f is None else f"{f:.0%}".replace("%", " %") for *_, f in cells),
    ]
    return f"| `{name}` | {'rows' if rows else 'planes'}, {dtype} | {MINIMUM[name]}N | " + " | ".join(pairs) + " |"


def choices() -> Iterator[str]:
    for machine in MACHINES:
        yield f"\n{machine.name}:\n"
        yield "| shape | float32 forward | backward | float16 forward | backward |"
        yield "|---|---|---|---|---|"
        for name, shape in SHAPES.items():
            cells = []
            for itemsize in (4, 2):
                wide = plans.wide(*shape, itemsize)
                cells += [_choice(plans.held(wide, machine.chip, arrays), wide, machine, arrays) for arrays in (1, 2)]
            yield f"| {name} | " + " | ".join(cells) + " |"


def _choice(held: Plan | None, wide: plans.Wide, machine: Machine, arrays: int) -> str:
    if held is None:
        split = plans.split(wide, machine.chip)
        return f"{3 if arrays == 1 else 5}N, {split.parts} block{'s' * (split.parts > 1)} a tile"
    where = "a block" if held.cluster == 1 else f"a cluster of {held.cluster}"
    return f"**{2 if arrays == 1 else 3}N**, held by {where}"


def page() -> Iterator[str]:
    yield f"<!-- Made by benchmarks/cuda_on_paper.py from kernels {fingerprint()}; do not edit. -->"
    yield "\n### What the rule chooses\n"
    yield "N is the size of x in bytes. Without a tile that fits, x is read again for the second pass."
    yield from choices()
    yield "\n### What the compiler says\n"
    yield "NVRTC's cubins for both architectures, blocks of one, loads of 16 bytes; two figures are sm_80, sm_90."
    yield "Instructions are counted in the unrolled loops over values. The last column is a **model**, not a measurement:"
    yield f"a copy is taken to reach {COPY:.0%} of the maker's bandwidth and a load to take {LATENCY * 1e9:.0f} ns.\n".replace(
        "%", " %"
    )
    yield from kernels()
    yield "\nIn flight is what a multiprocessor has asked for when its threads use the first of it, counted in the machine code:"
    yield "loads that are issued before any register of theirs is read. Small planes allow narrower loads, and their tiles"
    yield "take blocks of 128 threads; on sm_90, in KiB:\n"
    yield from narrow()


if __name__ == "__main__":
    print("\n".join(page()))
