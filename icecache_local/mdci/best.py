"""The k largest of many values, by counting instead of sorting."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..half import FAST, ZERO, address_of, kernel, largest

SAMPLE = 512  # values that tell where the best of a long list begin
LANES = 16


@intrinsic
def _float_of(typingctx, key):
    """f32 of an ordered key: integers in the order of the numbers whose bits they are made of."""

    def codegen(context, builder, signature, args):
        i32 = ir.IntType(32)
        key = builder.trunc(args[0], i32)
        flips = builder.lshr(builder.ashr(key, i32(31)), i32(1))
        return builder.bitcast(builder.xor(key, flips), ir.FloatType())

    return types.float32(types.int64), codegen


@intrinsic
def _key_of(typingctx, value):
    """Inverse of `_float_of`."""

    def codegen(context, builder, signature, args):
        i32 = ir.IntType(32)
        bits = builder.bitcast(args[0], i32)
        flips = builder.lshr(builder.ashr(bits, i32(31)), i32(1))
        return builder.sext(builder.xor(bits, flips), ir.IntType(64))

    return types.int64(types.float32), codegen


@intrinsic
def _keep_lanes(typingctx, values, at, floor, picked, m):
    """Append to picked[m:] which of values[at:at + LANES] are >= floor; their number.

    All LANES elements from picked[m] on are overwritten.
    """

    def codegen(context, builder, signature, args):
        i1, i16, i32, i64 = (ir.IntType(bits) for bits in (1, 16, 32, 64))
        floats, ints = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(i32, LANES)
        masks = ir.VectorType(i1, LANES)

        def all_lanes(scalar, kind):
            first = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, i64(0))
            return builder.shuffle_vector(first, first, ir.Constant(ints, None))

        source = address_of(context, builder, signature.args[0], args[0], args[1])
        value = builder.load(builder.bitcast(source, floats.as_pointer()), align=4)
        kept = builder.fcmp_ordered(">=", value, all_lanes(args[2], floats))
        number = builder.add(
            all_lanes(builder.trunc(args[1], i32), ints), ir.Constant(ints, list(range(LANES)))
        )
        kind = ir.FunctionType(ints, [ints, masks, ints])
        name = f"llvm.experimental.vector.compress.v{LANES}i32"
        compress = cgutils.get_or_insert_function(builder.module, kind, name)
        packed = builder.call(compress, [number, kept, ir.Constant(ints, ir.Undefined)])
        target = address_of(context, builder, signature.args[3], args[3], args[4])
        builder.store(packed, builder.bitcast(target, ints.as_pointer()), align=4)
        return builder.zext(builder.ctpop(builder.bitcast(kept, i16)), i64)

    index = types.int64
    return index(values, index, types.float32, picked, index), codegen


@kernel()
def _keep(values, n, floor, picked):
    """Put the indices of the values[:n] >= floor into picked, in rising order; their number."""
    m, whole = ZERO, n // LANES * LANES
    for i in range(ZERO, whole, LANES):
        m += _keep_lanes(values, i, floor, picked, m)
    for i in range(whole, n):
        picked[m] = i
        m += values[i] >= floor
    return m


@kernel(fastmath=FAST)
def _count(values, n, floor):
    """How many of values[:n] are >= floor."""
    count = np.float32(0)  # exact up to 2**24, and adds up in vectors
    for i in range(n):
        count += np.float32(1) if values[i] >= floor else np.float32(0)
    return np.int64(count)


@kernel()
def _border(values, n, k):
    """Return what exactly k of values[:n] reach, else (more are equal) the k-th largest."""
    low, high = _key_of(np.float32(-np.inf)), _key_of(largest(values, ZERO, n)) + 1
    while high - low > 1:  # at least k reach low, fewer than k reach high
        middle = (low + high) >> 1
        count = _count(values, n, _float_of(middle))
        if count == k:
            return _float_of(middle)
        if count > k:
            low = middle
        else:
            high = middle
    return _float_of(low)


@kernel()
def _shortlist(values, n, k, picked, work):
    """Put the indices of at least the k largest of values[:n] into picked; how many they are.

    A sample of long lists tells which values are hopeless.
    """
    if n > 2 * max(SAMPLE, k):
        step, m = n // SAMPLE, ZERO
        for i in range(0, n, step):
            work[m] = values[i]
            m += 1
        n_left = _keep(values, n, _border(work, m, min(m, 5 * k * m // (4 * n) + 16)), picked)
        if n_left >= k:
            return n_left
    for i in range(n):
        picked[i] = i
    return n


@kernel()
def take_best(values, ids, n, k, picked, work):
    """Pick the indices of the k largest of values[:n], ties to the lower id, in rising order.

    Parameters
    ----------
    values : float32 array
        No NaN.
    ids : int32 array
        Distinct among equal values.
    picked : int32 array
        Receives min(n, k) indices; at least n elements, the others are overwritten.
    work : float32 array
        At least n elements.

    Returns
    -------
    int
        min(n, k).
    """
    if n <= k:
        for i in range(n):
            picked[i] = i
        return n
    n_left = _shortlist(values, n, k, picked, work)
    for j in range(n_left):
        work[j] = values[picked[j]]
    border = _border(work, n_left, k)
    n_over = _count(work, n_left, border) - k
    last_id = np.iinfo(np.int32).max
    if n_over > 0:  # of those equal to the border, some are too many
        tied, m = np.empty(n_left, np.int32), ZERO
        for j in range(n_left):
            tied[m] = ids[picked[j]]
            m += values[picked[j]] == border
        tied[:m].sort()
        last_id = tied[m - 1 - n_over]
    m = ZERO
    for j in range(n_left):  # no branch, it would be mispredicted
        i = picked[j]
        picked[m] = i
        m += (values[i] > border) | ((values[i] == border) & (ids[i] <= last_id))
    return m
