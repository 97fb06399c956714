"""A vector type of sixteen floats for numba, with the SIMD operations that the feature kernel needs.

numba's own loops over the rows of an array are slow here: LLVM cannot prove that rows do not overlap, so it computes
one number at a time, or adds a check to every loop. An explicit vector type avoids that. LLVM maps a vector to one
register of AVX-512, two of AVX2, or four of SSE and NEON.
"""

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, models, register_model
from numba.np.arrayobj import make_array

LANES = 16

_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_INTS = ir.VectorType(ir.IntType(32), LANES)
_HALVES = ir.VectorType(ir.IntType(16), LANES)
_FUSED = ("contract",)  # LLVM may fuse a product and a sum into one instruction


class _Lanes(types.Type):
    def __init__(self) -> None:
        super().__init__("lanes")


lanes = _Lanes()


@register_model(_Lanes)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, of: Any) -> None:
        super().__init__(manager, of, _FLOATS)


def _floats(value: float) -> ir.Constant:
    return ir.Constant(_FLOATS, [value] * LANES)


def _ints(value: int) -> ir.Constant:
    return ir.Constant(_INTS, [value] * LANES)


def _define(operation: Callable[..., Any], instruction: str) -> None:
    """Compiles an operator such as + on (lanes, lanes) and (lanes, float32) to an LLVM instruction."""

    class _Typing(ConcreteTemplate):
        cases = [signature(lanes, lanes, lanes), signature(lanes, lanes, types.float32)]  # noqa: RUF012

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        left, right = arguments
        if signature.args[1] is types.float32:
            first = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), right, ir.Constant(ir.IntType(32), 0))
            right = builder.shuffle_vector(first, ir.Constant(_FLOATS, ir.Undefined), _ints(0))
        return getattr(builder, instruction)(left, right, flags=_FUSED)

    infer_global(operation)(_Typing)
    lower_builtin(operation, lanes, lanes)(lower)
    lower_builtin(operation, lanes, types.float32)(lower)


for _operation, _instruction in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul")):
    _define(_operation, _instruction)


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any, vector: ir.VectorType) -> Any:
    data = make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


@intrinsic
def load(typing_context: Any, array: Any, index: Any) -> Any:
    """Reads LANES values of a float32 array, from an index on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, index = arguments
        return builder.load(_pointer(context, builder, signature.args[0], array, index, _FLOATS), align=4)

    return lanes(array, types.intp), generate


@intrinsic
def store(typing_context: Any, array: Any, index: Any, value: Any) -> Any:
    """Writes LANES values into a float32 array, from an index on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, index, value = arguments
        builder.store(value, _pointer(context, builder, signature.args[0], array, index, _FLOATS), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), generate


@intrinsic
def store_half(typing_context: Any, array: Any, index: Any, value: Any) -> Any:
    """Writes LANES values below 65,504 into an array of float16, which is given as uint16.

    The conversion uses bit operations, as not every processor has an instruction for it and numba does not support
    float16 on CPUs. It rounds to nearest, ties to even, as NumPy does.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, index, value = arguments
        bits = builder.bitcast(value, _INTS)
        sign = builder.and_(builder.lshr(bits, _ints(16)), _ints(0x8000))
        size = builder.and_(bits, _ints(0x7FFFFFFF))
        # The exponent's bias changes from 127 to 15, and 13 bits of the fraction are rounded away.
        odd = builder.and_(builder.lshr(size, _ints(13)), _ints(1))
        normal = builder.lshr(builder.add(builder.add(size, odd), _ints(0xFFF - (112 << 23))), _ints(13))
        # Subnormal halves, below 2^-14, are as far apart as float32 values near 0.5: adding 0.5 rounds to them.
        added = builder.bitcast(builder.fadd(builder.bitcast(size, _FLOATS), _floats(0.5)), _INTS)
        small = builder.sub(added, _ints(126 << 23))
        is_small = builder.icmp_unsigned("<", size, _ints(113 << 23))
        half = builder.or_(builder.select(is_small, small, normal), sign)
        pointer = _pointer(context, builder, signature.args[0], array, index, _HALVES)
        builder.store(builder.trunc(half, _HALVES), pointer, align=2)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), generate


@intrinsic
def fill_windowed(
    typing_context: Any, source: Any, start: Any, stride: Any, window: Any, sample: Any, target: Any
) -> Any:
    """Multiplies LANES samples of each of LANES frames by the window, and stores them transposed.

    Frame i begins at `source[start + i * stride]`; its samples from `sample` on are taken. Row `sample` of `target` and
    the following rows each get the same sample of all frames.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, start, stride, window, sample, target = arguments
        source_type, window_type, target_type = signature.args[0], signature.args[3], signature.args[5]

        def number(value: int) -> ir.Constant:
            return ir.Constant(sample.type, value)

        factors = builder.load(_pointer(context, builder, window_type, window, sample, _FLOATS), align=4)
        rows = []
        for frame in range(LANES):
            at = builder.add(builder.add(start, sample), builder.mul(stride, number(frame)))
            row = builder.load(_pointer(context, builder, source_type, source, at, _FLOATS), align=4)
            rows.append(builder.fmul(row, factors))
        # The square is transposed by swapping its off-diagonal quarters, then those within each quarter, and so on.
        step = LANES // 2
        while step:
            high = [bool(lane & step) for lane in range(LANES)]
            uppers = [LANES + lane - step if high[lane] else lane for lane in range(LANES)]
            lowers = [LANES + lane if high[lane] else lane + step for lane in range(LANES)]
            for upper in (lane for lane in range(LANES) if not high[lane]):
                pair = rows[upper], rows[upper + step]
                rows[upper] = builder.shuffle_vector(*pair, ir.Constant(_INTS, uppers))
                rows[upper + step] = builder.shuffle_vector(*pair, ir.Constant(_INTS, lowers))
            step //= 2
        for lane, row in enumerate(rows):
            at = builder.mul(builder.add(sample, number(lane)), number(LANES))
            builder.store(row, _pointer(context, builder, target_type, target, at, _FLOATS), align=4)
        return context.get_dummy_value()

    return types.void(source, types.intp, types.intp, window, types.intp, target), generate


@intrinsic
def zero(typing_context: Any) -> Any:
    """Returns LANES zeros."""
    return lanes(), lambda context, builder, signature, arguments: _floats(0.0)


@intrinsic
def log(typing_context: Any, value: Any) -> Any:
    """Returns natural logarithms of positive values, accurate to the last bit or two (`logf` of the Cephes library)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def times(a: Any, b: Any) -> Any:
            return builder.fmul(a, b, flags=_FUSED)

        def plus(a: Any, b: Any) -> Any:
            return builder.fadd(a, b, flags=_FUSED)

        # value = (1 + x) · 2^exponent with 1 + x in √½ to √2
        bits = builder.bitcast(arguments[0], _INTS)
        exponent = builder.ashr(builder.sub(bits, _ints(0x3F3504F3)), _ints(23))
        fraction = builder.bitcast(builder.sub(bits, builder.shl(exponent, _ints(23))), _FLOATS)
        x = builder.fsub(fraction, _floats(1.0))
        exponent = builder.sitofp(exponent, _FLOATS)
        result = _floats(7.0376836292e-2)
        for coefficient in (
            -1.1514610310e-1,
            1.1676998740e-1,
            -1.2420140846e-1,
            1.4249322787e-1,
            -1.6668057665e-1,
            2.0000714765e-1,
            -2.4999993993e-1,
            3.3333331174e-1,
        ):
            result = plus(times(result, x), _floats(coefficient))
        square = times(x, x)
        result = times(times(result, x), square)
        result = plus(result, times(exponent, _floats(-2.12194440e-4)))  # ln 2 in two parts, the first exact
        result = plus(result, times(square, _floats(-0.5)))
        return plus(plus(x, result), times(exponent, _floats(0.693359375)))

    return lanes(lanes), generate
