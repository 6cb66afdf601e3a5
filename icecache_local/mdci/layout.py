"""The arrays of the index, grouped for the kernels.

A tree, with the levels numbered from the leaves::

    level 3      root                     inner nodes: up to 16 nodes, centroid
    level 2      node ... node
    level 1      bucket ... bucket        up to 16 pages, centroid
    level 0      page ... page            up to 16 tokens, int8 centroid; only a bucket's last
                                          page may be partial
"""

from __future__ import annotations

from collections import namedtuple
from typing import NamedTuple

import numpy as np
from numba import njit

FAN_OUT = 16  # most children of a node, and tokens of a page
BUILD_FAN_OUT = 12  # children after a bulk build: leaves room to grow without a split
THIN = 64  # a bucket that a truncation leaves with fewer tokens is dissolved
FRESH = 32  # tokens appended to a bucket before its pages are arranged anew

# Columns of Forest.meta
ROOT, HEIGHT, N_NODES, FREE_NODE, N_FREE, QUEUED = range(6)
# Columns of Forest.node; the children come first
N_CHILD, N_KEYS, PARENT, N_FRESH = range(FAN_OUT, FAN_OUT + 4)
NODE_SIZE = FAN_OUT + 4


class Forest(NamedTuple):
    """All trees of one layer; every array's first axis is the KV head.

    Attributes
    ----------
    kv : uint16 array [G, P * width]
        K and V pages, f16 bits (see `HostPages`).
    ids : int32 array [G, P, 16]
    fill : int32 array [G, P]
    state : uint8 array [G, P]
        See `HostPages`: a bucket is changed only while the pages that this reads are in memory.
    n_pages : int32 array [G, 1]
        Pages ever touched.
    page_c : int8 array [G, P * D]
    page_scale : float32 array [G, P]
        Page centroids (the mean of a page's keys): page_c * page_scale.
    page_spread : float32 array [G, P]
        Variance of a page's keys, summed over the dimensions.
    sizes : uint8 array [G, P * 16]
        What a sign of a token's residual stands for: sum(|residual| * s) / sum(s^2), s =
        profile[:D], in units of SIZE_STEP * sqrt(page_spread / sum(s^2)).
    signs : uint64 array [G, P * 16 * words]
        Per page, word and token, 64 signs of the token's residual, the key minus the page's
        mean in f16: bit b of word w is set where dimension 64 * w + b is not negative.
    profile : float32 array [G, D + 1]
        Standard deviation of a page's keys in each dimension, from a running mean of variances,
        and how many pages that mean looks back on.
    free : int32 array [G, P]
        Stack of free page numbers below `n_pages`; its height is meta[N_FREE].
    node_c : float32 array [G, N * D]
        Node centroids: the mean of all keys beneath.
    node_spread : float32 array [G, N]
        Variance of all keys beneath, summed over the dimensions.
    node_q : int8 array [G, N * D]
    node_scale : float32 array [G, N]
        The centroid for the search, which is bound by memory: node_q * node_scale.
    node : int32 array [G, N, 20]
        Children (page numbers below a bucket, node numbers otherwise), their number, tokens
        beneath, parent (-1 for the root; the next free node for a free one), tokens appended
        to a bucket since its pages were last arranged.
    queue : int32 array [G, N]
        Stack of buckets that wait for their arrangement; its height is meta[QUEUED].
    meta : int32 array [G, 6]
        Root (-1: empty), height (1: the root is a bucket), nodes ever used, first free node
        (-1: none), free pages, queued buckets.
    order : int32 array [G, R]
        Work space: row numbers (page * 16 + offset).
    work : float32 array [G, 2 * R]
        Work space: projections.
    vectors : float32 array [G, 5 * D]
        Work space: one key, one axis, two means, one variance.
    center : uint16 array [G, words * 64]
        Work space: a page's mean, f16 bits.
    """

    kv: np.ndarray
    ids: np.ndarray
    fill: np.ndarray
    state: np.ndarray
    n_pages: np.ndarray
    page_c: np.ndarray
    page_scale: np.ndarray
    page_spread: np.ndarray
    sizes: np.ndarray
    signs: np.ndarray
    profile: np.ndarray
    free: np.ndarray
    node_c: np.ndarray
    node_spread: np.ndarray
    node_q: np.ndarray
    node_scale: np.ndarray
    node: np.ndarray
    queue: np.ndarray
    meta: np.ndarray
    order: np.ndarray
    work: np.ndarray
    vectors: np.ndarray
    center: np.ndarray


# One head's part of a `Forest`: the same arrays without their first axis.
Tree = namedtuple("Tree", Forest._fields)


@njit(inline="always")
def tree_of(forest, g):
    """Return views of head `g`."""
    return Tree(
        forest.kv[g],
        forest.ids[g],
        forest.fill[g],
        forest.state[g],
        forest.n_pages[g],
        forest.page_c[g],
        forest.page_scale[g],
        forest.page_spread[g],
        forest.sizes[g],
        forest.signs[g],
        forest.profile[g],
        forest.free[g],
        forest.node_c[g],
        forest.node_spread[g],
        forest.node_q[g],
        forest.node_scale[g],
        forest.node[g],
        forest.queue[g],
        forest.meta[g],
        forest.order[g],
        forest.work[g],
        forest.vectors[g],
        forest.center[g],
    )
