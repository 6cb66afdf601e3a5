"""An entry of a library: what its card tells, and what is open of it."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from ..errors import SessionDamagedError
from .files import read_json, write_json
from .snapshot import Snapshot

LEAST_AGE = 3600  # seconds; what was used within the last hour counts alike
_CARD = {"n_tokens": int, "uses": int, "used_at": float, "read_s": float, "chain": list}
_CARD |= {"title": str}


@dataclass(frozen=True)
class Entry:
    """A stored text.

    Attributes
    ----------
    path : Path
    n_tokens : int
    n_bytes : int
    n_uses : int
        How often it was opened.
    used_at : float
        Seconds since the epoch.
    read_s : float
        What reading it took.
    title : str
        Names of the documents; empty where nobody told.
    """

    path: Path
    n_tokens: int
    n_bytes: int
    n_uses: int
    used_at: float
    read_s: float
    title: str = ""

    def value(self, now: float) -> float:
        """Seconds of reading saved per byte and second, if it is used on as it was so far."""
        age = max(now - self.used_at, LEAST_AGE)
        return self.read_s * (1 + self.n_uses) / (max(1, self.n_bytes) * age)


@dataclass
class Found:
    """An entry that is open; it is not evicted before `close`.

    Attributes
    ----------
    snapshot : Snapshot
    n_common : int
        Tokens it shares with what was asked for.
    """

    snapshot: Snapshot
    n_common: int
    _fd: int

    def close(self) -> None:
        """Close the files."""
        self.snapshot.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read_entry(path: Path) -> Entry:
    """Describe the entry at `path`."""
    card, n_bytes = read_card(path), 0
    for file in path.glob("*"):
        with contextlib.suppress(OSError):
            n_bytes += file.stat().st_size
    n_tokens, n_uses = card["n_tokens"], card["uses"]
    return Entry(path, n_tokens, n_bytes, n_uses, card["used_at"], card["read_s"], card["title"])


def read_card(path: Path) -> dict:
    """Return what is known of an entry; without a card it is of no worth, the first to go."""
    try:
        card = read_json(path.with_name(f"{path.name}.card"))
        return {key: kind(card[key]) for key, kind in _CARD.items()}
    except (SessionDamagedError, KeyError, TypeError, ValueError):
        return {key: kind() for key, kind in _CARD.items()}


def write_card(path: Path, card: dict) -> None:
    """Write down how an entry is used now; lost uses do no harm."""
    with contextlib.suppress(OSError):
        write_json(path.with_name(f"{path.name}.card"), card | {"used_at": time.time()})
