"""NVBench as a second clock for our kernels: mean times with a cold cache, by case, kind of work and dtype.

    python benchmarks/gpu_nvbench.py --out record.json

needs NVBench's Python package (`pip install cuda-bench[cu13]`) and a GPU; exits with status 2 where it is not installed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from bnengine import files

SECONDS = "0.3"
"""Of a case at most."""
DTYPES = ("float32", "float16", "bfloat16")
SUMMARIES = ("nv/cold/sample_size", "nv/cold/time/gpu/mean", "nv/cold/time/gpu/stdev/relative")


def shapes() -> dict[str, Any]:
    from bnengine.bench.gpu.normalization import FIRST, FIXED

    return {shape.name: shape for shape in FIXED[:FIRST]}


def measure(state: Any) -> None:
    """A case of the axes: NVBench calls ours on its own stream and flushes the cache before each call."""
    import cupy

    from bnengine.bench.gpu import normalization, shared

    shared.clear()
    case = normalization.Case(shapes()[state.get_string("case")], state.get_string("dtype"), state.get_string("work"))
    (ours,) = normalization.BUILDERS[normalization.OURS](case)
    ours.call()
    cupy.cuda.Device().synchronize()

    def launch(launched: Any) -> None:
        with cupy.cuda.ExternalStream(launched.get_stream().addressof()):
            ours.call()

    state.exec(launch, batched=False)


def taken(found: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each case of what NVBench wrote: its axes, and its summaries by their own names."""
    rows = []
    for state in found["benchmarks"][0]["states"]:
        axes = {axis["name"]: axis["value"] for axis in state["axis_values"] or []}
        values = {summary["tag"]: summary["data"][0]["value"] for summary in state["summaries"] or []}
        rows.append(axes | {tag: float(values[tag]) for tag in SUMMARIES if tag in values})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    try:
        from cuda import bench
    except ImportError as reason:
        print(f"gpu_nvbench: {reason}; pip install cuda-bench[cu13]", file=sys.stderr)
        return 2
    from bnengine.bench.gpu.normalization import TRAFFIC

    benchmark = bench.register(measure)
    for name, values in (("case", list(shapes())), ("work", list(TRAFFIC)), ("dtype", list(DTYPES))):
        benchmark.add_string_axis(name, values)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "nvbench.json"
        bench.run_all_benchmarks([sys.argv[0], "--json", str(written), "--timeout", SECONDS, "--quiet"])
        files.write(options.out, json.dumps(taken(json.loads(written.read_text(encoding="utf-8")))) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
