"""The pages of a tree as they follow each other: siblings stand together."""

from __future__ import annotations

import numpy as np

from ..half import kernel
from .layout import FAN_OUT, HEIGHT, N_CHILD, ROOT


@kernel()
def list_leaves(node, meta, pages, bucket):
    """List a head's leaves depth first.

    Parameters
    ----------
    node : int32 array [N, 20]
    meta : int32 array [6]
        See `Forest`.
    pages, bucket : int32 arrays [>= leaves]
        Receive page numbers, and for each the number of its bucket in this order.

    Returns
    -------
    int
        Leaves.
    """
    n, n_buckets = 0, 0
    if meta[ROOT] < 0:
        return n
    stack = np.empty((FAN_OUT * max(1, meta[HEIGHT]), 2), np.int64)
    stack[0, 0], stack[0, 1] = meta[ROOT], meta[HEIGHT]
    depth = 1
    while depth > 0:
        depth -= 1
        at, level = stack[depth, 0], stack[depth, 1]
        if level > 1:
            for j in range(node[at, N_CHILD] - 1, -1, -1):
                stack[depth, 0], stack[depth, 1] = node[at, j], level - 1
                depth += 1
            continue
        for j in range(node[at, N_CHILD]):
            pages[n], bucket[n] = node[at, j], n_buckets
            n += 1
        n_buckets += 1
    return n
