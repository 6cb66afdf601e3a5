"""f16 and int8 <-> f32 and raw array access for numba kernels.

Kernels see f16 rows as uint16 arrays (numba has no f16 on the CPU). `load` and `store` widen
and narrow on the way, int8 by value; they index without bounds or sign checks, so that LLVM
turns a loop over a row into vector code (vcvtph2ps on x86). The caller vouches for the indices.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

# Sums may be reordered, but infinities and NaN keep their meaning.
FAST = {"reassoc", "contract", "nsz"}


# Modules whose kernels are called from others, beside the index's.
CALLED = "half.py", "host_pages.py", "remainder.py", "selection.py", "slots.py", "device/host.py"


def drop_stale_kernels(package: Path) -> None:
    """Remove cached kernels that are older than a module from which they take code.

    numba compares a kernel with its own file only: what it calls in other files would stay as it
    was after an update.
    """
    sources = [*(package / name for name in CALLED), *package.glob("mdci/*.py")]
    newest = max(source.stat().st_mtime for source in sources)
    for cached in package.rglob("__pycache__/*.nbi"):
        with suppress(OSError):  # another process may have been faster
            if cached.stat().st_mtime < newest:
                cached.unlink()


drop_stale_kernels(Path(__file__).parent)

# What every kernel has in common; "numpy" lets a division by zero give inf instead of a branch.
kernel = partial(njit, cache=True, nogil=True, error_model="numpy")

# A literal argument would have numba compile the callee once more.
ZERO, ONE = np.int64(0), np.int64(1)

_F32, _I32, _I16 = ir.FloatType(), ir.IntType(32), ir.IntType(16)


def _host_has_half() -> bool:
    """Whether the CPU converts f16 in hardware (all 64-bit ARM; x86 with F16C)."""
    if "aarch64" in binding.get_process_triple() or "arm64" in binding.get_process_triple():
        return True
    return bool(binding.get_host_cpu_features().get("f16c", False))


def _widen_native(builder: ir.IRBuilder, bits: ir.Value) -> ir.Value:
    return builder.fpext(builder.bitcast(bits, ir.HalfType()), _F32)


def _narrow_native(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    return builder.bitcast(builder.fptrunc(value, ir.HalfType()), _I16)


def _widen_bits(builder: ir.IRBuilder, bits: ir.Value) -> ir.Value:
    """Shift exponent and mantissa into place and rescale; exact for every finite f16."""
    wide = builder.zext(bits, _I32)
    magnitude = builder.shl(builder.and_(wide, _I32(0x7FFF)), _I32(13))
    scaled = builder.fmul(builder.bitcast(magnitude, _F32), _F32(2.0**112))
    sign = builder.shl(builder.and_(wide, _I32(0x8000)), _I32(16))
    return builder.bitcast(builder.or_(builder.bitcast(scaled, _I32), sign), _F32)


def _narrow_bits(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """Round to nearest even for |value| <= 65504; the inverse of `_widen_bits`."""
    whole = builder.bitcast(value, _I32)
    sign = builder.and_(builder.lshr(whole, _I32(16)), _I32(0x8000))
    magnitude = builder.bitcast(builder.and_(whole, _I32(0x7FFFFFFF)), _F32)
    scaled = builder.bitcast(builder.fmul(magnitude, _F32(2.0**-112)), _I32)
    odd = builder.and_(builder.lshr(scaled, _I32(13)), _I32(1))
    rounded = builder.add(scaled, builder.add(odd, _I32(0xFFF)))
    return builder.trunc(builder.or_(builder.lshr(rounded, _I32(13)), sign), _I16)


def _round(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    kind = ir.FunctionType(_F32, [_F32])
    rint = cgutils.get_or_insert_function(builder.module, kind, "llvm.rint.f32")
    return builder.call(rint, [value])


def address_of(context, builder, array_type, array, index):
    """Emit a pointer to element `index` of a contiguous array; for intrinsics."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [index], inbounds=True)


def _make_load(widen):
    @intrinsic
    def load(typingctx, array, index):
        """Element `index` of a contiguous array as f32; uint16 elements are f16 bits."""

        def codegen(context, builder, signature, args):
            array_type = signature.args[0]
            value = builder.load(address_of(context, builder, array_type, *args))
            if array_type.dtype == types.uint16:
                return widen(builder, value)
            return builder.sitofp(value, _F32) if array_type.dtype == types.int8 else value

        return types.float32(array, types.int64), codegen

    return load


def _make_store(narrow):
    @intrinsic
    def store(typingctx, array, index, value):
        """Write an f32 to element `index`: uint16 receives f16 bits, int8 the nearest integer."""

        def codegen(context, builder, signature, args):
            array_type = signature.args[0]
            value = args[2]
            if array_type.dtype == types.uint16:
                value = narrow(builder, value)
            elif array_type.dtype == types.int8:
                value = builder.fptosi(_round(builder, value), ir.IntType(8))
            builder.store(value, address_of(context, builder, array_type, args[0], args[1]))
            return context.get_dummy_value()

        return types.void(array, types.int64, types.float32), codegen

    return store


load_native, store_native = _make_load(_widen_native), _make_store(_narrow_native)
load_bits, store_bits = _make_load(_widen_bits), _make_store(_narrow_bits)
load, store = (load_native, store_native) if _host_has_half() else (load_bits, store_bits)


@intrinsic
def copy(typingctx, target, at, source, start, count):
    """Copy `count` elements between contiguous arrays of one dtype; ranges may not overlap."""

    def codegen(context, builder, signature, args):
        into = address_of(context, builder, signature.args[0], args[0], args[1])
        from_ = address_of(context, builder, signature.args[2], args[2], args[3])
        size = context.get_abi_sizeof(into.type.pointee)
        cgutils.raw_memcpy(builder, into, from_, args[4], size)
        return context.get_dummy_value()

    index = types.int64
    return types.void(target, index, source, index, index), codegen


@intrinsic
def prefetch(typingctx, array, index):
    """Ask the CPU to bring element `index` into the cache; harmless for any address."""

    def codegen(context, builder, signature, args):
        at = builder.bitcast(
            address_of(context, builder, signature.args[0], *args), cgutils.voidptr_t
        )
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, _I32, _I32, _I32])
        call = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(call, [at, _I32(0), _I32(3), _I32(1)])
        return context.get_dummy_value()

    return types.void(array, types.int64), codegen


@intrinsic
def _float_of_bits(typingctx, bits):
    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], _F32)

    return types.float32(types.int32), codegen


@kernel(fastmath=FAST)
def dot(rows, at, vector, start, n):
    """Inner product of two runs of `n` elements, summed in f32."""
    total = np.float32(0)
    for d in range(n):
        total += load(rows, at + d) * load(vector, start + d)
    return total


@kernel(fastmath=FAST)
def two_dots(rows, at, vectors, first, second, n):
    """Inner products of a run of `n` elements with two others, summed in f32."""
    a, b = np.float32(0), np.float32(0)
    for d in range(n):
        element = load(rows, at + d)
        a += element * load(vectors, first + d)
        b += element * load(vectors, second + d)
    return a, b


@kernel(fastmath=FAST)
def squared_distance(rows, at, vector, start, n):
    """Squared Euclidean distance of two runs of `n` elements, summed in f32."""
    total = np.float32(0)
    for d in range(n):
        delta = load(rows, at + d) - load(vector, start + d)
        total += delta * delta
    return total


@kernel(fastmath=FAST)
def accumulate(target, start, rows, at, n, weight):
    """target[start:start + n] += weight * rows[at:at + n], target f32."""
    for d in range(n):
        store(target, start + d, load(target, start + d) + weight * load(rows, at + d))


@kernel(fastmath=FAST)
def accumulate_spread(target, start, rows, at, center, n, weight):
    """target[start:] += weight * (rows[at:] - target[center:])**2, n elements each."""
    for d in range(n):
        away = load(rows, at + d) - load(target, center + d)
        store(target, start + d, load(target, start + d) + weight * away * away)


@kernel(fastmath=FAST)
def weighted_distance(rows, at, vectors, center, weights, n):
    """Sum of weights[:n] * |rows[at:at + n] - vectors[center:center + n]|."""
    total = np.float32(0)
    for d in range(n):
        away = abs(load(rows, at + d) - load(vectors, center + d))
        total += load(weights, d) * away
    return total


@kernel(fastmath=FAST)
def move_deviations(deviations, variances, at, n, weight):
    """deviations[:n]**2 moves towards variances[at:at + n] by the share `weight`."""
    for d in range(n):
        variance = load(deviations, d) * load(deviations, d)
        change = load(variances, at + d) - variance
        store(deviations, d, np.sqrt(variance + weight * change))


@kernel(fastmath=FAST)
def move_mean(means, at, vectors, mean, n, share):
    """means[at:at + n] moves towards vectors[mean:] by `share`; their squared distance before."""
    total = np.float32(0)
    for d in range(n):
        away = load(vectors, mean + d) - load(means, at + d)
        store(means, at + d, load(means, at + d) + away * share)
        total += away * away
    return total


@kernel(fastmath=FAST)
def total_of(values, start, n):
    """Sum of values[start:start + n]."""
    total = np.float32(0)
    for d in range(n):
        total += load(values, start + d)
    return total


@kernel(fastmath=FAST | {"nnan"})
def largest(values, start, n):
    """Return the largest of values[start:start + n], float32; anything where NaN is among them."""
    top = np.float32(-np.inf)
    for i in range(n):
        value = load(values, start + i)
        top = value if value > top else top
    return top


@kernel(fastmath=FAST | {"nnan"})
def quantize(target, at, scales, i, source, start, n):
    """target[at:at + n] * scales[i] becomes the int8 approximation of source[start:start + n]."""
    top = np.float32(0)
    for d in range(n):
        value = abs(load(source, start + d))
        top = value if value > top else top
    scales[i] = top / np.float32(127)
    share = np.float32(127) / top if top > 0 else np.float32(0)
    for d in range(n):
        store(target, at + d, load(source, start + d) * share)


@kernel(fastmath=FAST, inline="always")
def exp_nonpositive(x):
    """e**x for x <= 0 to 3e-7 relative, 0 below -87; vectorises, which libm's does not."""
    t = max(x, np.float32(-87.0)) * np.float32(1.4426950408889634)
    whole = np.floor(t + np.float32(0.5))
    f = t - whole
    # Taylor polynomial of 2**f on [-0.5, 0.5]
    p = np.float32(1.5403530393381608e-4)
    p = p * f + np.float32(1.3333558146428443e-3)
    p = p * f + np.float32(9.618129107628477e-3)
    p = p * f + np.float32(5.550410866482158e-2)
    p = p * f + np.float32(2.402265069591007e-1)
    p = p * f + np.float32(6.931471805599453e-1)
    p = p * f + np.float32(1.0)
    value = p * _float_of_bits((np.int32(whole) + np.int32(127)) << np.int32(23))
    return value if x > np.float32(-87.0) else np.float32(0)
