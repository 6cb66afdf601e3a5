"""PolicyLayer: a LayerCache whose resident tokens a policy chooses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..layer_cache import LayerCache
from ..memory import Arena
from .base import softmax
from .kernels import mirror_all
from .view import OBSERVED, LayerView

if TYPE_CHECKING:
    from .kv_cache import PolicyKVCache


class PolicyLayer(LayerCache):
    """One layer under a policy; `attach` must be called before anything else.

    The keys are mirrored in position order: whole-sequence methods want them so. This doubles
    the memory of K.
    """

    def attach(self, owner: PolicyKVCache, number: int, n_layers: int) -> None:
        """Tell the layer whose policy decides, and its place among `n_layers`."""
        self.owner, self.number, self.n_layers = owner, number, n_layers
        heads, n_ctx, dim = len(self.pages.ids), self.slots.slot_of.shape[1], self.shape.head_dim_k
        self._mirrors = Arena()
        self._keys = self._mirrors.zeros((heads, n_ctx, dim), np.uint16)
        self._place_of = self._mirrors.zeros((heads, n_ctx), np.int32)
        self._n_mirrored = 0
        self._queries = np.zeros((0, self.shape.n_heads, dim), np.float32)
        self._n_read = 0
        self.restart()

    def follow(self, leader: LayerCache) -> None:
        """Do nothing: the policy decides for every layer."""

    def restart(self) -> None:
        """Have the policy start anew at the next step."""
        self._n_known = -1

    def observe(self, q: np.ndarray) -> None:
        """Keep the last of the queries (float32 [T, H, Dk]) that are being read exactly."""
        earlier = self._queries if self._n_read == self.n_tokens else self._queries[:0]
        self._queries = np.concatenate([earlier, q[-OBSERVED:]])[-OBSERVED:]
        self._n_read = self.n_tokens + len(q)
        self.restart()

    def truncate(self, n_tokens: int) -> None:
        """Drop every token at position >= `n_tokens`; see `LayerCache.truncate`."""
        if n_tokens < self.n_tokens:
            self._n_mirrored = min(self._n_mirrored, n_tokens)
            dropped = max(0, self._n_read - n_tokens)
            self._queries = self._queries[: max(0, len(self._queries) - dropped)]
            self._n_read -= dropped
            self.restart()
        super().truncate(n_tokens)

    def choose(self, q: np.ndarray, scale: float, real_from: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens that the policy wants in the slots; see `LayerCache.choose`."""
        policy, view = self.owner.policy, self._view(scale)
        if self._n_known < 0:
            policy.start(view)
        else:
            policy.extend(view, self._n_known)
        self._n_known = self.n_tokens
        rest = self.selector.rest
        rest[:] = -1
        tokens = policy.select(view, q, real_from)  # a search may set `rest`
        if not policy.remainder:
            rest[:] = -1
        self.owner.add_mass(self.number, self._kept_mass(view, q, tokens, real_from))
        return tokens, np.take_along_axis(self._place_of, tokens, axis=1)

    def _search(self, q: np.ndarray, scale: float, real_from: int) -> np.ndarray:
        """IceCache's own choice; int32 [G, n_slots]."""
        return super().choose(q, scale, real_from)[0]

    def _view(self, scale: float) -> LayerView:
        """Bring the mirrors up to date and show them."""
        pages, heads, n = self.pages, len(self._keys), self.n_tokens
        mirror_all(
            *(pages.kv.reshape(heads, -1), pages.ids, pages.n_pages, self.shape.head_dim_k),
            *(self._n_mirrored, self._keys.reshape(heads, -1), self._place_of),
        )
        self._n_mirrored = n
        return LayerView(
            number=self.number,
            n_layers=self.n_layers,
            shape=self.shape,
            sink=self.config.sink,
            window=self.window,
            n_slots=self.slots.n_slots,
            scale=scale,
            keys=self._keys.view(np.float16)[:, :n],
            n_read=self._n_read,
            queries=self._queries,
            search=lambda q, real_from: self._search(q, scale, real_from),
        )

    def _kept_mass(
        self, view: LayerView, q: np.ndarray, tokens: np.ndarray, real_from: int
    ) -> np.ndarray:
        """Share of each query head's exact attention that resident tokens hold; float32 [H]."""
        resident = np.zeros((len(tokens), view.n_tokens), bool)
        resident[:, : view.sink] = resident[:, real_from:] = True
        np.put_along_axis(resident, tokens, True, axis=1)
        without = np.flatnonzero(self.selector.rest >= 0)
        resident[without, tokens[without, -1]] = False
        weights = softmax(view.scores(q)).reshape(len(tokens), -1, view.n_tokens)
        return np.einsum("grn,gn->gr", weights, resident.astype(np.float32)).ravel()

    def take_over(self, old: PolicyLayer) -> None:
        """Hold the tokens of `old`, in position order as if they had just been read."""
        heads = np.arange(len(self.pages.ids))[:, None]
        places, chunk = old._places(0, old.n_tokens), self.owner.n_batch
        for first in range(0, old.n_tokens, chunk):
            k, v = old.pages.rows(heads, places[:, first : first + chunk])
            self.append_rows(k, v, np.arange(len(k)))
        self._queries, self._n_read = old._queries, old._n_read
        self.restore(self.sink_cells, 0)
