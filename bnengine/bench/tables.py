"""Records as lines of text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .records import Mean, Record, Row, Spread
from .timing import (
    COMPILED,
    JAX,
    NUMPY,
    OPERATORS,
    OURS,
    PORTABLE,
    PRODUCTS,
    PYTORCH,
    RECORDED,
    REFERENCE,
    WEIGHTED,
    WITHOUT_NUMBA,
    best,
    speed,
)

COLUMNS = {
    OPERATORS: "operators",
    JAX: "jax.jit",
    NUMPY: "NumPy",
    REFERENCE: "reference",
    WITHOUT_NUMBA: "no Numba",
    WEIGHTED: "weighted",
}
"""After PyTorch, and their headings."""
GPU_COLUMNS = {
    PYTORCH: "PyTorch",
    COMPILED: "compiled",
    JAX: "jax.jit",
    PORTABLE: "portable",
    REFERENCE: "reference",
}
OVER_IT = "speed of bnengine over it (p20 to p80)"


def heading(record: Record) -> str:
    """Where the figures come from."""
    caches = ", ".join(f"{name} {size}" for name, size in record["caches"].items())
    settings = "".join(f", {name}={value}" for name, value in record["environment"].items())
    return (
        f"{record['processor']}, {record['cores']} processors{f' ({caches})' if caches else ''}\n"
        f"threads: bnengine {record['threads']}, others 1 and {record['cores']}{settings}; load {record['load']['start']}"
    )


def normalization_head(dtype: str, repeats: int) -> str:
    """The heading over lines of shapes."""
    return (
        f"\nBN + ReLU, forward and backward, {dtype}, median of {repeats}: time of bnengine, and how many times as fast "
        "it is as\n"
        f"{'shape':<22}{'bnengine':>11}{'PyTorch':>22}{_in_columns(COLUMNS.values())}{'of limit':>10}"
    )


def normalization_line(rows: list[Row], name: str) -> str:
    """One shape: our time, our speed over others, the part of the memory limit."""
    ours = best(rows, OURS)
    if ours is None:
        return f"{name:<22}not measured"
    speeds = ours["speed_over"]
    others = _in_columns(_ratio(speeds.get(peer)) for peer in COLUMNS)
    return (
        f"{name:<22}{seconds(ours['seconds']['median']):>11}{_ratio(speeds.get(PYTORCH), spread=True):>22}{others}"
        f"{_ratio(ours.get('of_limit')):>10}"
    )


def step_lines(rows: list[Row], name: str, repeats: int) -> Iterator[str]:
    """One network: each family's fastest variant, its time, our speed over it."""
    yield f"\n{name}: a training step, median of {repeats}"
    yield f"{'':<44}{'time':>9}{OVER_IT:>41}{'page faults':>13}"
    ours, compiled = best(rows, OURS), best(rows, RECORDED)
    for family in dict.fromkeys(row["family"] for row in rows):
        row = best(rows, family)
        if row is not None:
            over = ours["speed_over"].get(family) if ours else None
            faults = "-" if row["page_faults"] is None else f"{row['page_faults']:.1f}"
            time = seconds(row["seconds"]["median"])
            yield f"{row['contender']:<44}{time:>9}{_ratio(over, spread=True):>41}{faults:>13}"
    for row in filter(None, (ours, compiled)):
        if PRODUCTS in row["speed_over"]:
            long = 1 / row["speed_over"][PRODUCTS]["median"]
            yield f"{row['family']} takes {long:.2f} times as long as its matrix products"


def scaling_head(repeats: int) -> str:
    """The heading over lines of a sweep."""
    return f"\nHow cost grows, median of {repeats}\n{'':<32}{'bnengine':>11}{'times as fast as PyTorch':>26}"


def scaling_line(rows: list[Row], name: str) -> str:
    """One case of a sweep: our time, our speed over PyTorch."""
    ours = best(rows, OURS)
    if ours is None:
        return f"{name:<32}not measured"
    over = ours["speed_over"].get(PYTORCH)
    return f"{name:<32}{seconds(ours['seconds']['median']):>11}{_ratio(over, spread=True):>26}"


# ---- on a GPU


def gpu_heading(record: Record) -> str:
    """Where the figures come from, and what the device's copy does."""
    clocks = ", ".join(f"{name} {value}" for name, value in record["clocks"]["start"].items())
    copy = record["copy"]
    return (
        f"{record['device']['name']}, driver {record['device']['driver']}, {clocks or 'clocks not known'}\n"
        f"copy of {copy['bytes']:,} bytes: {seconds(copy['seconds']['median'])}, {copy['bytes_per_second'] / 1e9:.4g} GB/s"
    )


def gpu_head(dtype: str, repeats: int) -> str:
    """The heading over lines of shapes."""
    return (
        f"\nbatch normalisation, {dtype}, median of {repeats}: time of bnengine on the device with a cold and a warm L2 "
        "cache and in\nPython's call, part of the copy's bandwidth (cold), and how many times as fast it is as (cold)\n"
        f"{'':<40}{'cold':>9}{'warm':>9}{'call':>9}{'of copy':>9}{_in_columns(GPU_COLUMNS.values())}"
    )


def gpu_line(rows: list[Row], name: str, work: str) -> str:
    """One shape and kind of work."""
    on = {clock: best((row for row in rows if row["clock"] == clock), OURS) for clock in ("cold", "warm", "call")}
    ours = on["cold"]
    if ours is None:
        return f"{name} {work:<{39 - len(name)}}not measured"
    times = "".join(f"{seconds(row['seconds']['median']):>9}" for row in on.values() if row)
    others = _in_columns(_ratio(ours["speed_over"].get(peer)) for peer in GPU_COLUMNS)
    return f"{name} {work:<{39 - len(name)}}{times}{_ratio(ours['of_copy']):>9}{others}"


def gpu_step_lines(rows: list[Row], name: str, repeats: int) -> Iterator[str]:
    """One network: each contender's time in a loop, on the device and in Python's call, and our speed over it."""
    yield f"\n{name}: a training step, median of {repeats}"
    yield f"{'':<44}{'in a loop':>10}{'device':>10}{'call':>10}{OVER_IT:>40}"
    ours = best((row for row in rows if row["clock"] == "loop"), OURS)
    for contender in dict.fromkeys(row["contender"] for row in rows):
        on = {row["clock"]: row for row in rows if row["contender"] == contender}
        times = "".join(f"{seconds(on[clock]['seconds']['median']):>10}" for clock in ("loop", "warm", "call"))
        over = speed(ours, on["loop"]) if ours and on["loop"] is not ours else None
        yield f"{contender:<44}{times}{_ratio(over, spread=True):>40}"


def closing(record: Record) -> Iterator[str]:
    """Geometric means, and what was not measured."""
    for mean in record["summary"]:
        if mean["cases"] > 1 and (_shows_on_gpu(mean) if record["backend"] == "cupy" else mean["over"] == PYTORCH):
            yield (
                f"{mean['group']}: {mean['family']} is {mean['geometric_mean']:.2f} times as fast as {mean['over']} "
                f"(geometric mean of {mean['cases']}, lowest {mean['lowest']:.2f})"
            )
    reasons = {f"{left['contender']}: {left['reason']}": left["case"] for left in record["left_out"]}
    for reason in reasons:
        yield f"not measured: {reason}"
    yield f"{record['seconds']:.0f} s, load {record['load']['end']}, seed {record['seed']}"


def _shows_on_gpu(mean: Mean) -> bool:
    return mean["family"] == OURS and mean["group"].endswith(("cold", "loop")) and mean["over"] in GPU_COLUMNS


def seconds(value: float) -> str:
    """A time in three digits and its unit."""
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e6:.3g} µs"


def _in_columns(texts: Iterable[str]) -> str:
    return "".join(f"{text:>11}" for text in texts)


def _ratio(value: Spread | None, *, spread: bool = False) -> str:
    if value is None:
        return "-"
    return f"{value['median']:.2f}" + (f" ({value['p20']:.2f} to {value['p80']:.2f})" if spread else "")
