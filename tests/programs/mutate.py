"""Faults put into the code one at a time: does the suite see them?

    python tests/programs/mutate.py --list                       # how many faults there are to draw from
    python tests/programs/mutate.py --faults 240 --seed 1 --out faults.jsonl

A fault is one edit of one expression or statement. It is drawn by seed from what the operators below find in the
modules of GROUPS, each group giving an equal share, and put into a copy of the repository. Caught is what makes a test
fail or last too long: the tests beside the
module, with --thorough also all others on what those miss. `--out` goes on where it stopped.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECONDS = 180
"""Of processor time: how busy the machine is changes no verdict."""

QUICK = (
    "not million and not jax and not jit and not dask and not after_a_fork and not readonly and not device1"
    " and not no_float64 and not samples and not onnx"
)
GROUPS = {
    "functional": (["functional/*.py"], ["test_functional.py", "-k", QUICK], 2),
    "reference": (
        ["kernels/reference.py"],
        [
            "test_functional.py",
            "test_optimizers.py",
            "test_oracles.py",
            "test_kernels.py",
            "-k",
            f"(strict or torch or float64 and reference) and {QUICK} or no_float64-ratio or plain and soft",
        ],
        1,
    ),
    "plain": (["kernels/plain.py"], ["test_kernels.py", "-k", f"plain and {QUICK}"], 1),
    "layers": (
        ["layers.py", "layer.py", "networks.py", "fully_connected.py", "context.py", "trees.py"],
        ["test_layers.py", "test_oracles.py", "-k", QUICK + " and not promises"],
        1,
    ),
    "optimizers": (
        ["optimizers/*.py"],
        ["test_optimizers.py", "test_oracles.py", "-k", QUICK + " and not promises"],
        1,
    ),
    "training": (
        ["training/*.py"],
        ["test_training.py", "test_finite.py", "test_parallel.py", "-k", QUICK],
        1,
    ),
    "checkpoints": (["checkpoints.py"], ["test_checkpoints.py", "test_layers.py", "-k", QUICK], 1),
    "data": (["data/*.py"], ["test_data.py", "test_readers.py", "test_tables.py"], 1),
}
"""Modules, the tests beside them, and their share of the faults."""

REST = [*(f"test_{name}.py" for name in ("functional", "kernels", "layers", "optimizers", "training", "checkpoints",
        "data", "readers", "config", "cli", "backends", "architecture", "fuzz")), "../bnengine"]  # fmt: skip
PRELOADED = ("numpy", "pytest", "sklearn.model_selection", "sklearn.datasets", "safetensors.numpy",
             "torch", "jax.numpy", "dask.array", "array_api_strict", "matplotlib.figure")  # fmt: skip


@dataclass(frozen=True)
class Fault:
    group: str
    file: str
    line: int
    operator: str
    start: int
    stop: int
    before: str
    after: str


# ---- operators: each gives (name, node, what takes its place)

Edit = tuple[str, ast.AST, str]

COMPARED = {ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==", ast.Is: "is not",
            ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in"}  # fmt: skip
OPPOSITE = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*"}
COMMUTATIVE = ("max", "min", "np.add", "np.multiply", "np.maximum", "xp.maximum", "array_namespace", "math.gcd")
COUNTS = ("n", "count", "rows", "steps", "total")


def edits(node: ast.AST) -> Iterator[Edit]:
    if isinstance(node, ast.BinOp) and type(node.op) in OPPOSITE:
        left, right = ast.unparse(node.left), ast.unparse(node.right)
        yield "sign", node, f"({left}) {OPPOSITE[type(node.op)]} ({right})"
        if isinstance(node.op, ast.Sub | ast.Div):
            yield "swapped arguments", node, f"({right}) {'-' if isinstance(node.op, ast.Sub) else '/'} ({left})"
        if ast.unparse(node.right) == "1" and isinstance(node.op, ast.Add | ast.Sub):
            yield "n for n - 1", node, f"({left})"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
        yield "sign" if isinstance(node.op, ast.USub) else "comparison", node, f"({ast.unparse(node.operand)})"
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        left, right = ast.unparse(node.left), ast.unparse(node.comparators[0])
        yield "comparison", node, f"({left}) {COMPARED[type(node.ops[0])]} ({right})"
    elif isinstance(node, ast.BoolOp):
        word = " or " if isinstance(node.op, ast.And) else " and "
        yield "comparison", node, word.join(f"({ast.unparse(value)})" for value in node.values)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
        yield "constant", node, repr(_other(node.value))
    elif isinstance(node, ast.Call):
        yield from _call_edits(node)
    elif isinstance(node, ast.AugAssign) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield "dropped statement", node, "pass"
    elif (
        isinstance(node, ast.If) and not node.orelse and isinstance(node.body[0], ast.Raise | ast.Continue | ast.Return)
    ):
        yield "dropped statement", node.test, "False"
    elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ast.unparse(node.value).split("("):
        yield "dropped statement", node, "pass"
    elif isinstance(node, ast.Name) and node.id in COUNTS and isinstance(node.ctx, ast.Load):
        yield "n for n - 1", node, f"({node.id} - 1)"


def _other(value: float) -> float:
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else value * 2


def _call_edits(node: ast.Call) -> Iterator[Edit]:
    plain = [argument for argument in node.args if not isinstance(argument, ast.Starred)]
    if len(plain) >= 2 and len(plain) == len(node.args) and ast.unparse(node.func) not in COMMUTATIVE:
        words = [ast.unparse(argument) for argument in (plain[1], plain[0], *plain[2:], *node.keywords)]
        yield "swapped arguments", node, f"{ast.unparse(node.func)}({', '.join(words)})"
    for keyword in node.keywords:
        if keyword.arg == "axis" and isinstance(keyword.value, ast.Constant):
            yield "axis", keyword.value, "1" if keyword.value.value == 0 else "0"


def faults(group: str) -> list[Fault]:
    """Every fault that the operators find in the modules of a group."""
    paths = sorted(path for pattern in GROUPS[group][0] for path in (ROOT / "bnengine").glob(pattern))
    return [fault for path in paths for fault in _faults_in(group, path)]


def _faults_in(group: str, path: Path) -> Iterator[Fault]:
    raw = path.read_bytes()
    tree = ast.parse(raw)
    starts = [0]
    for line in raw.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for node in _code(tree):
        for operator, place, after in edits(node):
            start, stop = (starts[row - 1] + column for row, column in (
                (place.lineno, place.col_offset), (place.end_lineno, place.end_col_offset)))  # fmt: skip
            before = raw[start:stop].decode()
            with contextlib.suppress(SyntaxError):
                if ast.dump(ast.parse(raw[:start] + after.encode() + raw[stop:])) != ast.dump(tree):
                    file = str(path.relative_to(ROOT))
                    yield Fault(group, file, place.lineno, operator, start, stop, before, after)


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes that are computed with: no annotation, decorator, message of an error, or text."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "exc") or isinstance(node, ast.JoinedStr):
            continue
        if isinstance(node, ast.keyword) and node.arg in ("strict", "stacklevel"):  # checks of lengths that are equal
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield child
                yield from _code(child)


def drawn(count: int, seed: int) -> list[Fault]:
    """Each group gives its share, at random and never twice at one place."""
    shares = sum(share for _, _, share in GROUPS.values())
    chosen: list[Fault] = []
    for group, (_, _, share) in GROUPS.items():
        found = faults(group)
        random.Random(f"{seed} {group}").shuffle(found)
        by_place = {(fault.file, fault.start): fault for fault in reversed(found)}
        chosen += sorted(by_place.values(), key=found.index)[: -(-count * share // shares)]
    return chosen


# ---- running the tests


def tests_fail(repository: Path, arguments: list[str]) -> str:
    """What the tests say of this copy: "" where all pass. Forked, so that libraries are imported once."""
    log = repository / "log"
    child = os.fork()
    if child == 0:
        try:
            _run_pytest(repository, log, arguments)
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
        finally:  # never back into the parent's code
            os._exit(99)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return f"ended by {signal.Signals(os.WTERMSIG(status)).name}"
    if status == 0:
        return ""
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", log.read_text(errors="replace"), re.MULTILINE)
    return found[1] if found else f"status {status}"


def _run_pytest(repository: Path, log: Path, arguments: list[str]) -> None:
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
    signal.alarm(10 * SECONDS)  # ends what waits for ever
    os.chdir(repository / "tests")
    sys.path[:0] = [str(repository), str(repository / "tests")]
    sys.dont_write_bytecode = True
    sys.modules["numba"] = None  # type: ignore[assignment]  # no fault is in the compiled kernels, and loading them takes long
    import pytest

    os._exit(int(pytest.main(["-x", "-q", "--tb=no", "-p", "no:cacheprovider", *arguments])))


def caught(repository: Path, fault: Fault, thorough: bool) -> str:
    """The test that sees the fault, or ""."""
    path = repository / fault.file
    raw = path.read_bytes()
    path.write_bytes(raw[: fault.start] + fault.after.encode() + raw[fault.stop :])
    try:
        return tests_fail(repository, GROUPS[fault.group][1]) or (thorough and tests_fail(repository, REST)) or ""
    finally:
        path.write_bytes(raw)


def copied(place: Path) -> Path:
    """The files of the repository as they are, in a place of their own."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in listed:
        target = place / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
    return place


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), help="these groups")
    parser.add_argument("--thorough", action="store_true", help="run all tests on what those beside the module miss")
    parser.add_argument("--list", action="store_true", help="count what there is to draw from")
    parser.add_argument("--out", type=Path, default=Path("faults.jsonl"), help="a line for each fault")
    options = parser.parse_args()
    if options.list:
        for group in GROUPS:
            print(f"{group}: {len(faults(group))} faults")
        return 0
    done = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    known = {(row["file"], row["start"], row["after"]) for row in done}
    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory, options.out.open("a") as out:
        repository = copied(Path(directory))
        for group in options.only:
            arguments = GROUPS[group][1]
            assert tests_fail(repository, arguments) == "", f"{group}: {(repository / 'log').read_text()[-3000:]}"
        for fault in drawn(options.faults, options.seed):
            if (fault.file, fault.start, fault.after) in known or fault.group not in options.only:
                continue
            began = time.monotonic()
            seen = caught(repository, fault, options.thorough)
            row = asdict(fault) | {"caught": seen, "seconds": round(time.monotonic() - began, 1)}
            done.append(row)
            print(json.dumps(row), file=out, flush=True)
    report(done)
    return 0


def report(rows: list[dict[str, object]]) -> None:
    survivors = [row for row in rows if not row["caught"]]
    print(f"{len(rows)} faults, {len(rows) - len(survivors)} caught: {1 - len(survivors) / max(1, len(rows)):.3f}")
    for row in survivors:
        print(f"{row['file']}:{row['line']} {row['operator']}: {row['before']}  ->  {row['after']}")


if __name__ == "__main__":
    sys.exit(main())
