"""Policy: which tokens of each layer stay resident, chosen anew at each decode step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from ..errors import IceCacheError
from .view import LayerView


class Policy(ABC):
    """A method to choose the resident tokens of a sequence.

    One object serves all layers of one sequence. `start` is called for a layer before its first
    `select` and again whenever more of a prompt has been read; `extend` in between. All
    policies run through the same hook, host tier and slots: the prompt is read exactly, sink
    and window are resident, every KV head has the same number of slots and fills all of them.
    They differ in `select` alone. None keeps whole layers or heads dense, as some papers do.

    Parameters
    ----------
    seed : int
        Of whatever is random in the method.

    Attributes
    ----------
    title : str
        Name in tables.
    paper : str
        Where the method comes from; empty for none.
    exact : bool
        Everything is attended to; `select` is never called.
    remainder : bool
        The last token that a search has found gives way to a row for all that were scored and
        not chosen; see `icecache_local.remainder`.
    """

    title: ClassVar[str]
    paper: ClassVar[str] = ""
    exact: ClassVar[bool] = False
    remainder: ClassVar[bool] = False

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def start(self, layer: LayerView) -> None:  # noqa: B027 (not every policy has a state)
        """Prepare for a layer whose tokens so far have been read exactly."""

    def extend(self, layer: LayerView, first: int) -> None:  # noqa: B027
        """Take note of the tokens from position `first` on, decoded since the last call."""

    @abstractmethod
    def select(self, layer: LayerView, q: np.ndarray, real_from: int) -> np.ndarray:
        """Choose the tokens in one layer's slots for the newest token.

        Parameters
        ----------
        layer : LayerView
        q : float32 array [H, Dk]
            Queries of the newest token, after RoPE.
        real_from : int
            Tokens from here on sit in cells of their own.

        Returns
        -------
        int32 array [G, n_slots]
            Positions in [sink, real_from), distinct within a head, those of the window among
            them.
        """

    def random(self, layer: LayerView, *more: int) -> np.random.Generator:
        """Return a generator that depends on the seed, the layer and `more` alone."""
        return np.random.default_rng([self.seed, layer.number, *more])


class ScorerPolicy(Policy):
    """A policy that gives every token a worth; the best of the middle fill the slots."""

    def select(self, layer: LayerView, q: np.ndarray, real_from: int) -> np.ndarray:
        """Choose the tokens with the largest `score`; int32 [G, n_slots]."""
        return self.fill(layer, self.score(layer, q), real_from)

    @staticmethod
    def fill(layer: LayerView, worth: np.ndarray, real_from: int) -> np.ndarray:
        """Window and best tokens of the middle, ties to the earlier one.

        Parameters
        ----------
        layer : LayerView
        worth : float32 array [heads, n]
        real_from : int

        Returns
        -------
        int32 array [heads, n_slots]
        """
        window_from = max(layer.sink, layer.n_tokens - layer.window)
        forced = np.arange(window_from, real_from, dtype=np.int32)
        middle = worth[:, layer.sink : min(window_from, real_from)]
        best = best_tokens(middle, layer.n_slots - len(forced)) + np.int32(layer.sink)
        return np.concatenate([best, np.tile(forced, (len(best), 1))], axis=1)

    @abstractmethod
    def score(self, layer: LayerView, q: np.ndarray) -> np.ndarray:
        """Worth of every token.

        Parameters
        ----------
        layer : LayerView
        q : float32 array [H, Dk]

        Returns
        -------
        float32 array [G, n]
        """


def group_worth(scores: np.ndarray, n_groups: int) -> np.ndarray:
    """Sum over each group's query heads of their softmax weights, as a logarithm.

    Papers written for one query head per KV head leave open how a group agrees: here all use
    this rule, the one that keeps the most attention mass. With one head per group it is the
    order of the scores.

    Parameters
    ----------
    scores : float32 array [H, m]
        Logits.
    n_groups : int
        G; consecutive heads share a group.

    Returns
    -------
    float32 array [G, m]
    """
    heads = scores.reshape(n_groups, -1, scores.shape[1])
    return _log_sum_exp(heads - _log_sum_exp(heads, 2), 1)[:, 0]


def softmax(scores: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, float32."""
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def _log_sum_exp(x: np.ndarray, axis: int) -> np.ndarray:
    top = x.max(axis=axis, keepdims=True)
    return top + np.log(np.exp(x - top).sum(axis=axis, keepdims=True))


def best_tokens(worth: np.ndarray, k: int) -> np.ndarray:
    """Find the k largest values of each row ties to the lower index.

    Parameters
    ----------
    worth : float32 array [G, m]
    k : int

    Returns
    -------
    int32 array [G, k]
        Their indices in rising order.

    Raises
    ------
    IceCacheError
        There are fewer than `k` tokens.
    """
    m = worth.shape[1]
    if not 0 <= k <= m:
        raise IceCacheError(f"{k} tokens are to be chosen from {m}; use a smaller budget.")
    out = np.empty((len(worth), k), np.int32)
    for row, best in zip(worth, out, strict=True):
        border = np.partition(row, m - k)[m - k] if k else np.inf
        above = np.flatnonzero(row > border)
        tied = np.flatnonzero(row == border)[: k - len(above)]
        best[:] = np.sort(np.concatenate([above, tied]))
    return out
