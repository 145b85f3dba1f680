"""A vector type for compiled loops: 64 bytes, that is 16 float32 or 8 float64.

LLVM's own vectoriser guards loops over several arrays with alias checks, adds remainder loops and
cannot be asked for streaming stores. With this type a loop says what it wants. LLVM splits the
vectors where registers are narrower, so nothing here depends on the processor but `fence`.
"""

from __future__ import annotations

import functools
import operator
import platform
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic as numba_intrinsic
from numba.extending import models, register_model
from numba.np.arrayobj import make_array

# An intrinsic is called without its first argument, the typing context.
intrinsic: Callable[[Callable[..., Any]], Callable[..., Any]] = numba_intrinsic

BYTES = 64
X86 = platform.machine().lower() in ("x86_64", "amd64")
FLAGS = ("contract",)  # a * b + c may fuse; sums are never reordered


class Vector(types.Type):  # numba has no type information
    """`lanes` values of a floating type."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        self.lanes = BYTES * 8 // dtype.bitwidth
        super().__init__(f"Vector({dtype} x {self.lanes})")


@register_model(Vector)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Vector) -> None:
        super().__init__(manager, kind, _llvm(kind))


def _llvm(kind: Vector) -> Any:
    return ir.VectorType(ir.FloatType() if kind.dtype == types.float32 else ir.DoubleType(), kind.lanes)


def _constant(kind: Vector, values: list[float]) -> Any:
    return ir.Constant(_llvm(kind), values)


def _pointer(context: Any, builder: Any, kind: Any, array: Any, i: Any, vector: Vector) -> Any:
    start = make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(start, [i]), _llvm(vector).as_pointer())


def _declared(builder: Any, name: str, kind: Any) -> Any:
    """An intrinsic of LLVM on vectors, which llvmlite cannot name."""
    return builder.module.globals.get(name) or ir.Function(builder.module, kind, name)


# ---- memory


@intrinsic
def lanes(_: Any, x: Any) -> Any:
    """How many values of x a vector holds, known while compiling."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return context.get_constant(types.intp, Vector(x.dtype).lanes)

    return types.intp(x), generate


@intrinsic
def load(_: Any, x: Any, i: Any) -> Any:
    """x[i : i + lanes] of a flat array."""
    vector = Vector(x.dtype)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        result = builder.load(_pointer(context, builder, sig.args[0], args[0], args[1], vector))
        result.align = x.dtype.bitwidth // 8
        return result

    return vector(x, types.intp), generate


def _storing(streaming: bool) -> Any:
    def store(_: Any, y: Any, i: Any, v: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            result = builder.store(args[2], _pointer(context, builder, sig.args[0], args[0], args[1], v))
            result.align = BYTES if streaming else y.dtype.bitwidth // 8
            if streaming:
                one = ir.Constant(ir.IntType(32), 1)
                result.set_metadata("nontemporal", builder.module.add_metadata([one]))
            return context.get_dummy_value()

        return types.void(y, types.intp, v), generate

    return store


store = intrinsic(_storing(streaming=False))
"""y[i : i + lanes] = v"""

stream = intrinsic(_storing(streaming=True))
"""The same past the caches, for results that would not fit there: needs 64-byte alignment and a `fence`."""


@intrinsic
def fence(_: Any) -> Any:
    """Make streamed results visible to other threads."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if X86:
            kind = ir.FunctionType(ir.VoidType(), ())
            builder.call(builder.module.declare_intrinsic("llvm.x86.sse.sfence", (), kind), ())
        return context.get_dummy_value()

    return types.void(), generate


# ---- arithmetic


@intrinsic
def power_of_two(_: Any, k: Any) -> Any:
    """2**k for one float32 that is a whole number from -126 to 127."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        word = ir.IntType(32)
        exponent = builder.add(builder.fptosi(args[0], word), ir.Constant(word, 127))
        return builder.bitcast(builder.shl(exponent, ir.Constant(word, 23)), ir.FloatType())

    return types.float32(k), generate


@intrinsic
def splat(_: Any, value: Any) -> Any:
    """A vector of one value."""
    vector = Vector(value)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        nothing = ir.Constant(_llvm(vector), ir.Undefined)
        first = builder.insert_element(nothing, args[0], ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(ir.IntType(32), vector.lanes), None))

    return vector(value), generate


@intrinsic
def fused(_: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, in one rounding where the processor can.

    For sums of two products: there the compiler may fuse either, and does not always choose the same one.
    """

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(_llvm(a), [_llvm(a)] * 3)
        return builder.call(_declared(builder, f"llvm.fmuladd.v{a.lanes}f{a.dtype.bitwidth}", kind), args)

    return a(a, b, c), generate


@intrinsic
def where_active(_: Any, before: Any, v: Any) -> Any:
    """0 where `before` <= 0, else v: ReLU, and with dy its mask. NaN stays."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        zero = _constant(v, [0.0] * v.lanes)
        return builder.select(builder.fcmp_ordered("<=", args[0], zero), zero, args[1])

    return v(before, v), generate


@intrinsic
def last(_: Any, v: Any, count: Any) -> Any:
    """v with all but its last `count` lanes zero."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.VectorType(ir.IntType(32), v.lanes)
        nothing = ir.Constant(kind, ir.Undefined)
        count32 = builder.trunc(args[1], ir.IntType(32))
        first = builder.insert_element(nothing, count32, ir.Constant(ir.IntType(32), 0))
        counts = builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(ir.IntType(32), v.lanes), None))
        from_end = ir.Constant(kind, [v.lanes - 1 - i for i in range(v.lanes)])
        kept = builder.icmp_signed("<", from_end, counts)
        return builder.select(kept, args[0], _constant(v, [0.0] * v.lanes))

    return v(v, types.intp), generate


@intrinsic
def total(_: Any, vs: Any) -> Any:
    """The sum of all lanes of a tuple of vectors, in float64: a float32 sum of squares could overflow here."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.VectorType(ir.DoubleType(), vs.dtype.lanes)
        parts = [builder.extract_value(args[0], i) for i in range(vs.count)]
        if vs.dtype.dtype == types.float32:
            parts = [builder.fpext(part, kind) for part in parts]
        reduction = ir.FunctionType(ir.DoubleType(), (ir.DoubleType(), kind))
        name = f"llvm.vector.reduce.fadd.v{vs.dtype.lanes}f64"
        arguments = [ir.Constant(ir.DoubleType(), 0.0), functools.reduce(builder.fadd, parts)]
        return builder.call(_declared(builder, name, reduction), arguments, fastmath=("reassoc",))

    return types.float64(vs), generate


def _elementwise(symbol: Any, instruction: str) -> None:
    class Template(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            if len(args) == 2 and isinstance(args[0], Vector) and args[0] == args[1]:
                return signature(args[0], *args)
            return None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, instruction)(args[0], args[1], flags=FLAGS)

    infer_global(symbol)(Template)
    lower_builtin(symbol, Vector, Vector)(lower)


_elementwise(operator.add, "fadd")
_elementwise(operator.sub, "fsub")
_elementwise(operator.mul, "fmul")
