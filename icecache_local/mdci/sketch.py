"""Comparing tokens by one bit per dimension, before any key is read.

A key is its page's mean plus a residual, of which the index keeps the signs and a size. For a
query q and residuals of typical elements s, q.residual is guessed as size * sum(+-q * s): a
correlation of 0.8 with the truth for a sixteenth of the memory. q * s, in 6-bit integers, becomes
bit planes; the sum over the set signs is then a few population counts per token.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from ..half import address_of, dot, kernel, largest, prefetch, store, weighted_distance
from .layout import FAN_OUT

PLANES = 4  # bits of a query's integers, two's complement
LARGEST = np.float32(7)
SIZE_STEP = np.float32(4 / 255)  # of 16 tokens, none is more than 4 times the typical one
UNKNOWN = np.float32(1 - 2 / np.pi)
LOWEST = np.float32(-3e38)
AHEAD = 16  # pages asked for before they are needed
LINE = 8  # words of a cache line


class SearchSpace(NamedTuple):
    """Work space of a search; one head's part lacks the first axis.

    Attributes
    ----------
    nodes, pages, picked : int32 array [G, M]
        M = 16 * beam pages at most.
    scores, centers : float32 array [G, group + 1, M] and [G, group, M]
    work : float32 array [G, M]
    totals, unit_spread : float32 array [G, group]
    planes : uint64 array [G, group, words * PLANES]
    steps : float32 array [G, group, 2]
    values, copies : float32 array [G, 16 * M]
    numbers, taken : int32 array [G, 16 * M]
        `numbers` counts from 0.
    marks : uint64 array [G, P / 64]
        One bit per page; all zero between searches.
    """

    nodes: np.ndarray
    pages: np.ndarray
    picked: np.ndarray
    scores: np.ndarray
    centers: np.ndarray
    work: np.ndarray
    totals: np.ndarray
    unit_spread: np.ndarray
    planes: np.ndarray
    steps: np.ndarray
    values: np.ndarray
    copies: np.ndarray
    numbers: np.ndarray
    taken: np.ndarray
    marks: np.ndarray


_of_thread = threading.local()


def space_for(heads: int, group: int, dim: int, n_pages: int, capacity: int) -> SearchSpace:
    """Return this thread's work space for searches that look at `n_pages` of `capacity` pages.

    All layers of a shape share it: it holds nothing from one search to the next.
    """
    spaces = _of_thread.__dict__
    shape = (heads, group, dim, n_pages, capacity)
    if shape not in spaces:
        spaces[shape] = _reserve(*shape)
    return spaces[shape]


def _reserve(heads: int, group: int, dim: int, n_pages: int, capacity: int) -> SearchSpace:
    def zeros(*shape: int, dtype: type = np.int32) -> np.ndarray:
        return np.zeros((heads, *shape), dtype)

    n_words, n_rows = -(-dim // 64), FAN_OUT * n_pages
    return SearchSpace(
        nodes=zeros(n_pages),
        pages=zeros(n_pages),
        picked=zeros(n_pages),
        scores=zeros(group + 1, n_pages, dtype=np.float32),
        centers=zeros(group, n_pages, dtype=np.float32),
        work=zeros(n_pages, dtype=np.float32),
        totals=zeros(group, dtype=np.float32),
        unit_spread=zeros(group, dtype=np.float32),
        planes=zeros(group, n_words * PLANES, dtype=np.uint64),
        steps=zeros(group, 2, dtype=np.float32),
        values=zeros(n_rows, dtype=np.float32),
        copies=zeros(n_rows, dtype=np.float32),
        numbers=zeros(n_rows) + np.arange(n_rows, dtype=np.int32),
        taken=zeros(n_rows),
        marks=zeros(capacity // 64 + 1, dtype=np.uint64),
    )


@njit(inline="always")
def space_of(space, g):
    """Return views of head `g`."""
    return SearchSpace(
        space.nodes[g],
        space.pages[g],
        space.picked[g],
        space.scores[g],
        space.centers[g],
        space.work[g],
        space.totals[g],
        space.unit_spread[g],
        space.planes[g],
        space.steps[g],
        space.values[g],
        space.copies[g],
        space.numbers[g],
        space.taken[g],
        space.marks[g],
    )


@intrinsic
def _signs(typingctx, rows, at, center, start):
    """One bit for each of 64 f16 elements: whether rows[at + b] >= center[start + b].

    As integers, f16 bits are in order once those of negative numbers are flipped. The compiler
    would pack the bits one by one.
    """

    def codegen(context, builder, signature, args):
        i16 = ir.IntType(16)
        lanes = ir.VectorType(i16, 64)

        def ordered(kind, index):
            pointer = address_of(context, builder, signature.args[kind], args[kind], index)
            bits = builder.load(builder.bitcast(pointer, lanes.as_pointer()), align=2)
            sign = builder.ashr(bits, ir.Constant(lanes, [15] * 64))
            return builder.xor(bits, builder.and_(sign, ir.Constant(lanes, [0x7FFF] * 64)))

        larger = builder.icmp_signed(">=", ordered(0, args[1]), ordered(2, args[3]))
        return builder.bitcast(larger, ir.IntType(64))

    return types.uint64(rows, types.int64, center, types.int64), codegen


@kernel()
def set_sketch(t, page, width, dim):
    """Signs and sizes of the page's residuals; vectors[3 * dim:] holds the mean of its keys."""
    words, mean = (dim + 63) // 64, 3 * dim
    total = dot(t.profile, np.int64(0), t.profile, np.int64(0), dim)
    for d in range(dim):
        store(t.center, d, t.vectors[mean + d])
    unit = SIZE_STEP * np.sqrt(t.page_spread[page] * total)
    share = np.float32(1) / unit if unit > 0 else np.float32(0)
    for i in range(t.fill[page]):
        at = page * width + i * dim
        size = weighted_distance(t.kv, at, t.vectors, mean, t.profile, dim)
        t.sizes[page * FAN_OUT + i] = np.uint8(min(np.rint(size * share), np.float32(255)))
        for w in range(words):
            word = _signs(t.kv, at + 64 * w, t.center, np.int64(64 * w))
            valid = np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(max(64 * (w + 1) - dim, 0))
            t.signs[(page * words + w) * FAN_OUT + i] = word & valid


@kernel()
def _set_planes(t, q, r, dim, planes, steps):
    """Bit planes of query r's integers; the weight of one in a count, and the sum of all."""
    largest = np.float32(0)
    for d in range(dim):
        largest = max(largest, abs(q[r * dim + d]) * t.profile[d])
    planes[r, :] = 0
    steps[r, :] = 0
    if not (largest > 0 and largest < np.inf):
        return
    step = largest / LARGEST
    for d in range(dim):
        integer = np.int64(np.rint(q[r * dim + d] * t.profile[d] / step))
        steps[r, 1] += integer
        for p in range(PLANES):
            bit = np.uint64((integer >> p) & 1)
            planes[r, (d >> 6) * PLANES + p] |= bit << np.uint64(d & 63)
    steps[r, 0] = step


@intrinsic
def _compare(typingctx, signs, sizes, page, words, planes, r, factor, center, total, values, n):
    """Write center + factor * size * sum(+-integer) of a page's 16 tokens to values[n:].

    Queries after the first (r > 0) only raise what is there. Written as vector code, 16 tokens
    side by side: the compiler finds no way through the loops to counting bits in vectors.
    """

    def codegen(context, builder, signature, args):
        i32, i64, f32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
        wide, floats = ir.VectorType(i64, FAN_OUT), ir.VectorType(f32, FAN_OUT)
        kinds = {"signs": 0, "sizes": 1, "planes": 4, "values": 9}
        _, _, page, words, _, r, factor, center, total, _, n = args

        def at(name, index):
            kind = kinds[name]
            return address_of(context, builder, signature.args[kind], args[kind], index)

        def all_lanes(scalar, kind):
            first = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, i64(0))
            mask = ir.Constant(ir.VectorType(i32, FAN_OUT), None)
            return builder.shuffle_vector(first, first, mask)

        def load_lanes(pointer, kind, align):
            return builder.load(builder.bitcast(pointer, kind.as_pointer()), align=align)

        kind = ir.FunctionType(wide, [wide])
        ctpop = cgutils.get_or_insert_function(builder.module, kind, f"llvm.ctpop.v{FAN_OUT}i64")
        sums = cgutils.alloca_once_value(builder, ir.Constant(wide, None))
        with cgutils.for_range(builder, words) as loop:
            block = builder.add(builder.mul(page, words), loop.index)
            word = load_lanes(at("signs", builder.mul(block, i64(FAN_OUT))), wide, 8)
            first = builder.mul(builder.add(builder.mul(r, words), loop.index), i64(PLANES))
            count = None
            for p in range(PLANES - 1, -1, -1):
                plane = builder.load(at("planes", builder.add(first, i64(p))))
                bits = builder.call(ctpop, [builder.and_(word, all_lanes(plane, wide))])
                # the highest plane is the sign's
                count = builder.add(builder.add(count, count), bits) if count else builder.neg(bits)
            builder.store(builder.add(builder.load(sums), count), sums)
        count = builder.trunc(builder.load(sums), ir.VectorType(i32, FAN_OUT))
        count = builder.sitofp(builder.add(count, count), floats)
        value = builder.fsub(count, all_lanes(total, floats))
        bytes_ = ir.VectorType(ir.IntType(8), FAN_OUT)
        size = load_lanes(at("sizes", builder.mul(page, i64(FAN_OUT))), bytes_, 1)
        value = builder.fmul(value, builder.uitofp(size, floats))
        value = builder.fmul(value, all_lanes(factor, floats))
        value = builder.fadd(value, all_lanes(center, floats))
        pointer = at("values", n)
        lowest = all_lanes(f32(float(LOWEST)), floats)
        is_first = all_lanes(
            builder.icmp_signed("==", r, i64(0)), ir.VectorType(ir.IntType(1), FAN_OUT)
        )
        old = builder.select(is_first, lowest, load_lanes(pointer, floats, 4))
        # NaN compares false: what a NaN query says of a token stays orderable
        value = builder.select(builder.fcmp_ordered(">", value, old), value, old)
        builder.store(value, builder.bitcast(pointer, floats.as_pointer()), align=4)
        return context.get_dummy_value()

    index, real = types.int64, types.float32
    arguments = (signs, sizes, index, index, planes, index, real, real, real, values, index)
    return types.void(*arguments), codegen


@kernel()
def _ask(t, page, words):
    """Prefetch what is known of a page's tokens."""
    prefetch(t.sizes, page * FAN_OUT)
    prefetch(t.fill, page)
    for w in range(0, words * FAN_OUT, LINE):
        prefetch(t.signs, page * words * FAN_OUT + w)


@kernel()
def sketch(t, q, dim, n_pages, log_mass, space):
    """Estimate every token of pages[:n_pages]: values[16 * i + j] for token j of pages[i].

    The value is the largest of its q.k over the group, each less its head's `log_mass`;
    -inf where a page has no such token. `centers` holds q.c of the pages.
    """
    words = np.int64((dim + 63) // 64)
    group = np.int64(log_mass.shape[0])
    total = dot(t.profile, np.int64(0), t.profile, np.int64(0), dim)
    share = np.float32(1) / total if total > 0 else np.float32(0)
    for r in range(group):
        _set_planes(t, q, r, dim, space.planes, space.steps)
    for i in range(min(n_pages, AHEAD)):
        _ask(t, np.int64(space.pages[i]), words)
    for i in range(n_pages):
        page = np.int64(space.pages[i])
        if i + AHEAD < n_pages:
            _ask(t, np.int64(space.pages[i + AHEAD]), words)
        unit = SIZE_STEP * np.sqrt(t.page_spread[page] * share)
        for r in range(group):
            _compare(
                t.signs,
                t.sizes,
                page,
                words,
                space.planes,
                np.int64(r),
                space.steps[r, 0] * unit,
                space.centers[r, i] - log_mass[r],
                space.steps[r, 1],
                space.values,
                np.int64(i * FAN_OUT),
            )
        for j in range(t.fill[page], FAN_OUT):
            space.values[i * FAN_OUT + j] = -np.inf


@kernel()
def expect(found, page_spread, space):
    """Turn the estimates of `found` [G, C], with which `space.values` begins, into expectations.

    A key's signs tell 2 / pi of the variance that its page leaves open. The mean of exp(x) over
    the rest of it, for a Gaussian x, is that of its mean times exp(variance / 2).
    """
    for g in range(found.shape[0]):
        unit = UNKNOWN * largest(space.unit_spread[g], np.int64(0), space.unit_spread.shape[1])
        if not unit < np.inf:  # of a NaN query
            continue
        for i in range(found.shape[1]):
            if found[g, i] < 0:
                break
            space.values[g, i] += unit * page_spread[g, found[g, i] >> 4]
