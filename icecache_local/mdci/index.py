"""MDCIndex: which pages of the host tier hold the keys that matter to a query."""

from __future__ import annotations

import numpy as np

from ..config import PAGE, CacheConfig
from ..host_pages import HostPages
from ..memory import Arena, is_begin
from .errors import IndexInputError, NonFiniteKeyError
from .integrity import check_forest
from .kernels import DONE, KEEP_ALL, STAGE, change_all, first_non_finite, query_all
from .layout import FAN_OUT, HEIGHT, N_KEYS, N_NODES, NODE_SIZE, ROOT, THIN, Forest
from .order import list_leaves
from .sketch import expect, space_for

FIELD_OF_VIEW = 64  # nodes kept per level, at least
CANDIDATES_PER_PAGE = 2  # scored exactly, per page looked into
_EMPTY = (-1, 0, 0, -1, 0, 0)  # Forest.meta of a tree without nodes
_NO_PAGES = np.zeros(0, np.int32)


class MDCIndex:
    """Multi-level dynamic index over one layer's keys, one tree per KV head.

    The leaves are pages of the host tier from `first_page` on; the index alone writes them.
    After M-DCI (arXiv 2604.10539); docs/mdci.md tells what was kept and what was changed.

    Parameters
    ----------
    pages : HostPages
        The host tier. Its capacity beyond `first_page` should be `pages_for(n)` for n tokens.
    first_page : int
        First page number that belongs to the index.
    config : CacheConfig
        `candidate_pages` (pages to look into; twice as many tokens are the candidates) and `budget`
        (candidates at least).
    layer : int
        Named in error messages.

    Attributes
    ----------
    version : int
        Grows whenever tokens come, go or move.
    """

    def __init__(
        self, pages: HostPages, first_page: int, config: CacheConfig, layer: int = 0
    ) -> None:
        if not 0 <= first_page < pages.capacity:
            raise IndexInputError(
                f"first_page is {first_page}; it must be a page of the host tier's "
                f"{pages.capacity}."
            )
        self.pages, self.first_page, self.layer = pages, first_page, layer
        self.version = 0
        shape = pages.shape
        self.dim, self.group = shape.head_dim_k, shape.group
        self.width = pages.kv.shape[2]
        self._words = PAGE * (-(-self.dim // 64))  # of a page's signs
        leaves = pages.capacity - first_page
        candidates = max(config.budget, CANDIDATES_PER_PAGE * config.candidate_pages)
        self.n_least = min(candidates, PAGE * leaves)
        self.n_best = min(config.candidate_pages, leaves)
        self.beam = max(FIELD_OF_VIEW, -(-self.n_least // THIN) + 1, -(-self.n_best // 8))
        self._arena, self._scratch = Arena(), Arena()
        self._forest = self._reserve()
        heads = shape.n_kv_heads
        self._looked_at = min(FAN_OUT * self.beam, leaves)  # pages, or nodes of one level
        self._answer = (
            np.full((heads, self.n_least), -1, np.int32),
            np.full((heads, self.group), -np.inf, np.float32),
            np.zeros((heads, self.group * self.dim), np.float32),
        )
        self._cursor = np.zeros((heads, 5), np.int64)
        self._inserting = _NO_PAGES
        self._forest.meta[:] = _EMPTY

    @staticmethod
    def pages_for(n_tokens: int) -> int:
        """Leaves that always suffice for `n_tokens` per head, spare ones for moves included."""
        return -(-n_tokens // PAGE) + n_tokens // THIN + 1 + 2 * FAN_OUT

    def _reserve(self) -> Forest:
        pages = self.pages
        heads, capacity, dim = pages.shape.n_kv_heads, pages.capacity, self.dim
        nodes = capacity // 2 + 16
        zeros, scratch = self._arena.zeros, self._scratch.zeros
        n_rows = capacity * PAGE + 512
        return Forest(
            kv=pages.kv.reshape(heads, capacity * self.width),
            ids=pages.ids,
            fill=pages.fill,
            state=pages.state,
            n_pages=pages.n_pages[:, None],
            page_c=zeros((heads, capacity * dim), np.int8, huge=True),
            page_scale=zeros((heads, capacity), np.float32),
            page_spread=zeros((heads, capacity), np.float32),
            sizes=zeros((heads, capacity * PAGE), np.uint8),
            signs=zeros((heads, capacity * self._words), np.uint64, huge=True),
            profile=zeros((heads, dim + 1), np.float32),
            free=zeros((heads, capacity), np.int32),
            node_c=zeros((heads, nodes * dim), np.float32),
            node_spread=zeros((heads, nodes), np.float32),
            node_q=zeros((heads, nodes * dim), np.int8),
            node_scale=zeros((heads, nodes), np.float32),
            node=zeros((heads, nodes, NODE_SIZE), np.int32),
            queue=zeros((heads, nodes), np.int32),
            meta=np.zeros((heads, len(_EMPTY)), np.int32),
            order=scratch((heads, n_rows), np.int32),
            work=scratch((heads, 2 * n_rows), np.float32),
            vectors=scratch((heads, 5 * dim), np.float32),
            center=scratch((heads, self._words * 4), np.uint16),
        )

    @property
    def log_mass(self) -> np.ndarray:
        """Logarithm of sum(exp(scale * q.k)) over all tokens, as the last query guessed it.

        float32 [H], the same array at every call.
        """
        return self._answer[1].reshape(-1)

    def log_weights(self) -> np.ndarray:
        """Logarithm of the softmax weight to be expected of each candidate of the last query.

        To be called once after it, before another query of this thread.

        Returns
        -------
        float32 array [G, at least C]
            The largest over the group. Overwritten by the next query, of whatever layer.
        """
        heads = len(self._forest.meta)
        space = space_for(heads, self.group, self.dim, self._looked_at, self.pages.capacity)
        expect(self._answer[0], self._forest.page_spread, space)
        return space.values

    @property
    def n_tokens(self) -> int:
        """Tokens per KV head."""
        root = int(self._forest.meta[0, ROOT])
        return 0 if root < 0 else int(self._forest.node[0, root, N_KEYS])

    @property
    def nbytes(self) -> int:
        """Bytes of the index itself that have been touched: centroids and nodes.

        The page table (`HostPages.nbytes_table`) is not included.
        """
        forest = self._forest
        leaves = np.maximum(forest.n_pages - self.first_page, 0).sum()
        per_node = 5 * self.dim + 4 * (NODE_SIZE + 3)
        per_page = self.dim + 8 + PAGE + 8 * self._words
        return int(leaves) * per_page + int(forest.meta[:, N_NODES].sum()) * per_node

    def insert(self, page_numbers: np.ndarray) -> None:
        """Move the rows of pages below `first_page` into the leaves; the pages end up empty.

        See `begin_insert` for parameters and errors.
        """
        if not self.begin_insert(page_numbers):
            self.finish_insert()

    def begin_insert(self, page_numbers: np.ndarray) -> bool:
        """Begin to `insert`, as far as that goes without pages that are on the disk alone.

        Those are then WANTED, and nothing else may be done before `finish_insert`.

        Parameters
        ----------
        page_numbers : int32 array [n]
            Distinct pages, the same for all heads. Full ones, unless no more will follow.

        Returns
        -------
        bool
            Whether it is done.

        Raises
        ------
        IndexInputError
            Wrong dtype, shape or page number, or no room left in the host tier.
        NonFiniteKeyError
            A key holds NaN or an infinity; nothing has been moved.
        """
        pages = self.pages
        if page_numbers.dtype != np.int32 or page_numbers.ndim != 1:
            raise IndexInputError(
                f"page_numbers is {page_numbers.dtype} {list(page_numbers.shape)}; "
                "it must be an int32 array [n]."
            )
        if page_numbers.size == 0:
            return True
        if page_numbers.min() < 0 or page_numbers.max() >= self.first_page:
            raise IndexInputError(
                f"page_numbers must lie in [0, {self.first_page}), below the index's leaves."
            )
        after = self.n_tokens + page_numbers.size * PAGE
        if self.pages_for(after) > pages.capacity - self.first_page:
            raise IndexInputError(
                f"{after} tokens need {self.pages_for(after)} leaves, but the host tier has "
                f"{pages.capacity - self.first_page}: reserve MDCIndex.pages_for(n_tokens)."
            )
        head, position = first_non_finite(pages.kv, pages.ids, pages.fill, page_numbers, self.dim)
        if head >= 0:
            raise NonFiniteKeyError(
                f"layer {self.layer}, KV head {head}: the key at position {position} holds NaN "
                "or an infinity; the model's output is broken from there on."
            )
        self._cursor[:] = 0
        self._inserting = page_numbers
        self._change(KEEP_ALL, page_numbers)
        if page_numbers.size > 256:
            self._scratch.release()
        return self._is_done

    def finish_insert(self) -> None:
        """Do what `begin_insert` could not; the pages that are wanted are read."""
        while not self._is_done:
            self.pages.tier.fetch_wanted()
            self._change(KEEP_ALL, self._inserting)

    @property
    def _is_done(self) -> bool:
        return bool((self._cursor[:, STAGE] == DONE).all())

    def _change(self, n_tokens: int, pages: np.ndarray) -> None:
        self.version += 1
        change_all(
            *(self._forest, n_tokens, pages, self.first_page, self.width, self.dim),
            self._cursor,
        )

    def query(self, q: np.ndarray, scale: float) -> np.ndarray:
        """Tokens that promise the most attention, summed over a head's group of queries.

        Parameters
        ----------
        q : float32 array [H, Dk]
        scale : float
            Factor of q.k in the softmax.

        Returns
        -------
        int32 array [G, C]
            Places (page * 16 + offset) of C = max(budget, 2 * candidate_pages) tokens (no
            more than the host tier has room for), or of all tokens and then -1 where there
            are fewer. The same array at every call.

        Raises
        ------
        IndexInputError
            Wrong dtype or shape, or not contiguous.
        """
        heads = len(self._forest.meta)
        if q.dtype != np.float32 or q.shape != (heads * self.group, self.dim):
            raise IndexInputError(
                f"q is {q.dtype} {list(q.shape)}; it must be a float32 array "
                f"[{heads * self.group}, {self.dim}]."
            )
        forest, q, answer, sizes, space = self.search_arguments(q)
        query_all(forest, q, np.float32(scale), sizes, answer, space)
        return answer[0]

    def search_arguments(self, q: np.ndarray) -> tuple[object, ...]:
        """Forest, queries (float32 [G, group * Dk]), answer, sizes and space of `query_all`."""
        heads = len(self._forest.meta)
        space = space_for(heads, self.group, self.dim, self._looked_at, self.pages.capacity)
        sizes = self.dim, self.beam, self.n_best
        return self._forest, q.reshape(heads, self.group * self.dim), self._answer, sizes, space

    @property
    def centroids(self) -> np.ndarray:
        """Means of the pages' keys before `centroid_scales`; int8 [G, P * Dk]."""
        return self._forest.page_c

    @property
    def centroid_scales(self) -> np.ndarray:
        """What a unit of `centroids` stands for; float32 [G, P]."""
        return self._forest.page_scale

    @property
    def spreads(self) -> np.ndarray:
        """Variance of the pages' keys, summed over the dimensions; float32 [G, P]."""
        return self._forest.page_spread

    @property
    def variance_shares(self) -> np.ndarray:
        """Share of each dimension in the variance, the same for all pages; float32 [G, Dk]."""
        profile = np.square(self._forest.profile[:, : self.dim])
        tiny = np.finfo(np.float32).tiny
        return profile / np.maximum(profile.sum(axis=1, keepdims=True), tiny)

    def leaves(self, head: int) -> tuple[np.ndarray, np.ndarray]:
        """List a head's leaves, siblings together.

        Returns
        -------
        pages : int32 array [n]
        bucket : int32 array [n]
            Number of the bucket of each; they ascend from 0.
        """
        pages, bucket = np.zeros((2, int(self.pages.n_pages[head])), np.int32)
        n = list_leaves(self._forest.node[head], self._forest.meta[head], pages, bucket)
        return pages[:n], bucket[:n]

    def truncate(self, n_tokens: int) -> None:
        """Drop every token at position >= `n_tokens`; later tokens may then come again."""
        if n_tokens < 0:
            raise IndexInputError(f"n_tokens is {n_tokens}; it must not be negative.")
        if self.pages.tier is not None:
            self.pages.tier.fetch_all()
        self._cursor[:] = 0
        self._change(n_tokens, _NO_PAGES)
        self._scratch.release()

    def clear(self) -> None:
        """Forget all tokens and return the index's memory to the OS."""
        self.version += 1
        forest = self._forest
        end = int(forest.n_pages.max())
        if end > self.first_page:
            forest.fill[:, self.first_page : end] = 0
            forest.ids[:, self.first_page : end] = 0
            forest.state[:, self.first_page : end] = 0
        np.minimum(forest.n_pages, self.first_page, out=forest.n_pages)
        self._arena.release()
        self._scratch.release()
        forest.meta[:] = _EMPTY

    _SAVED_PAGES = ("page_c", "page_scale", "page_spread", "sizes", "signs", "free")
    _SAVED_NODES = ("node_c", "node_spread", "node_q", "node_scale", "node", "queue")
    _PER_DIM = ("page_c", "node_c", "node_q")

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays that `state` copies from, at their full size."""
        names = ("meta", "n_pages", "profile", *self._SAVED_PAGES, *self._SAVED_NODES)
        return {name: getattr(self._forest, name) for name in names}

    def state(self) -> dict[str, np.ndarray]:
        """Return copies of the index's own arrays; the pages are `HostPages`'."""
        forest = self._forest
        n_pages, n_nodes = int(forest.n_pages.max()), int(forest.meta[:, N_NODES].max())
        state = {name: getattr(forest, name).copy() for name in ("meta", "n_pages", "profile")}
        for names, n in ((self._SAVED_PAGES, n_pages), (self._SAVED_NODES, n_nodes)):
            for name in names:
                array = getattr(forest, name)
                scale = self.dim if name in self._PER_DIM else 1
                scale = {"signs": self._words, "sizes": PAGE}.get(name, scale)
                state[name] = array[:, : n * scale].copy()
        return state

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Take over what `state` returned; the pages must hold what they held then.

        Arrays that are views of `arrays()` have been filled in already, in a new index.

        Raises
        ------
        IndexInputError
            The arrays do not fit this index's shape.
        """
        forest = self._forest
        for name, array in state.items():
            target = getattr(forest, name)
            fits = array.ndim == target.ndim and array.dtype == target.dtype
            if not fits or any(a > b for a, b in zip(array.shape, target.shape, strict=True)):
                raise IndexInputError(
                    f"state['{name}'] is {array.dtype} {list(array.shape)}; this index holds "
                    f"{target.dtype} {list(target.shape)}."
                )
        self.version += 1
        old = {name: a for name, a in state.items() if not is_begin(getattr(forest, name), a)}
        if len(old) == len(state):
            self._arena.release()
        for name, array in old.items():
            target = getattr(forest, name)
            target[tuple(slice(n) for n in array.shape)] = array

    def check_integrity(self) -> None:
        """Raise AssertionError where the index contradicts itself or the pages."""
        check_forest(self._forest, self.first_page, self.width, self.dim)

    @property
    def height(self) -> int:
        """Levels of nodes above the pages, in the highest tree."""
        return int(self._forest.meta[:, HEIGHT].max())
