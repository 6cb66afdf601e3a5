"""What the engine tells while it works."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .passages import Look

if TYPE_CHECKING:
    from icecache_local import CacheStats


class Stopped(Exception):
    """The user ended a job."""


@dataclass(frozen=True)
class Reading:
    """Progress of reading: tokens read, tokens to read, seconds so far."""

    done: int
    total: int
    seconds: float


@dataclass(frozen=True)
class Text:
    """The answer so far."""

    text: str


@dataclass(frozen=True)
class Meters:
    """Speeds of one job and the cache after it.

    Attributes
    ----------
    prefill, decode : float
        Tokens per second; 0 where nothing was read or written.
    stats : CacheStats
    n_ctx : int
    """

    prefill: float
    decode: float
    stats: CacheStats
    n_ctx: int


@dataclass(frozen=True)
class Done:
    """The end of a job.

    Attributes
    ----------
    text : str
        The whole answer.
    stopped : bool
        Whether the user ended it.
    looks : list of Look
    """

    text: str
    stopped: bool
    looks: list[Look]


@dataclass(frozen=True)
class Warned:
    """Something went wrong that ends nothing: one sentence."""

    text: str


Event = Reading | Text | Meters | Done | Warned
