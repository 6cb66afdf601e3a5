"""PolicyKVCache: a KVCache whose policy and budget can be exchanged."""

from __future__ import annotations

import numpy as np

from ..config import CacheConfig
from ..hook import PREFILL
from ..kv_cache import KVCache
from .base import Policy
from .layer import PolicyLayer


class PolicyKVCache(KVCache):
    """The KV cache of one context, under the policy set by `use`."""

    layer_class = PolicyLayer
    policy: Policy

    def use(self, policy: Policy) -> None:
        """Let `policy` choose from the next step on; the record of kept mass begins anew."""
        self.policy = policy
        self._mass: dict[int, np.ndarray] = {}
        self._n_steps: dict[int, int] = {}
        for cache in self.layers.values():
            cache.restart()

    def begin(self, n_past: int, n_new: int, exact: bool) -> None:
        """Prepare for one llama_decode; see `KVCache.begin`."""
        super().begin(n_past, n_new, exact or self.policy.exact)

    def add_mass(self, number: int, mass: np.ndarray) -> None:
        """Record the attention mass that one layer's resident tokens hold in one step.

        Parameters
        ----------
        number : int
            Place among the layers driven.
        mass : float array [H]
        """
        self._mass[number] = self._mass.get(number, 0) + mass.astype(np.float64)
        self._n_steps[number] = self._n_steps.get(number, 0) + 1

    def kept_mass(self) -> np.ndarray:
        """Mean over the steps since `use`; NaN where there were none.

        Returns
        -------
        float64 array [L, H]
            Over the layers that are driven; H the most query heads of any.
        """
        heads = [self.hook.layers[number].n_heads for number in self.devices]
        out = np.full((len(heads), max(heads)), np.nan)
        for number, n_heads in enumerate(heads):
            if self.policy.exact:
                out[number, :n_heads] = 1
            elif number in self._mass:
                out[number, :n_heads] = self._mass[number] / self._n_steps[number]
        return out

    def rebudget(self, config: CacheConfig) -> None:
        """Continue the sequence under another budget.

        Carriers beyond it are given back to llama.cpp; the host tier is arranged anew, as if
        the tokens had just been read.

        Parameters
        ----------
        config : CacheConfig
            Its budget must not be larger than the current one once the cells are outgrown.
        """
        n_carriers = min(config.budget - 2, self.cells.n_carriers)
        self.config = config
        if not self.sparse:
            return
        self.cells.keep_carriers(n_carriers)
        old, self.layers = self.layers, self.new_layers(self.cells.carriers.copy())
        for number, cache in self.layers.items():
            cache.take_over(old[number])

    def new_layers(self, carriers: np.ndarray) -> dict[int, PolicyLayer]:
        """Return empty caches that ask the policy; see `KVCache.new_layers`."""
        layers = super().new_layers(carriers)
        for number, cache in enumerate(layers.values()):
            cache.attach(self, number, len(layers))
        return layers

    def _on_layer(self, place: int) -> None:
        layer = self.hook.layers[place]
        # What policy "full" decodes is read exactly too, but it is no prompt.
        decoded = self.policy.exact and layer.n_tokens == 1
        if self.hook.c.mode == PREFILL and place == layer.layer and not decoded:
            self.layers[layer.layer].observe(self.devices[layer.layer].queries(layer))
        super()._on_layer(place)
