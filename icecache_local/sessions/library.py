"""A library of what models have read: whoever begins with the same tokens need not read them.

Every entry is a snapshot named after its tokens' hash, so that the same text is stored once. Beside
it lies a card with a chain of hashes over its pages of 16 tokens: the entry that shares most with
a prompt is found without opening any. What it has beyond the common tokens is dropped after
opening.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from xxhash import xxh3_128

from ..config import PAGE
from ..errors import SessionDamagedError, SessionError, SessionWriteError
from .chain import kind_of, page_chain
from .entry import Entry, Found, read_card, read_entry, write_card
from .settings import Settings
from .snapshot import Image, Snapshot, write_snapshot

LEAST = 256  # tokens worth opening or storing
NAME = re.compile(r"[0-9a-f]{16}-[0-9a-f]{32}")  # hashes of the kind of model, and of the text


class Library:
    """A folder of snapshots, shared by all chats.

    Parameters
    ----------
    path : Path
        Made where it is missing.
    max_bytes : int
        Of all entries; the least valuable ones go first, see `Entry.value`.

    Raises
    ------
    SessionError
        The folder cannot be made.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path, self.max_bytes = path, max_bytes
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise SessionError(f"{path} cannot be made: {error.strerror}.") from None

    def find(
        self, fingerprint: dict[str, object], settings: Settings, tokens: np.ndarray
    ) -> Found | None:
        """Open the entry that shares most with the beginning of `tokens`.

        Parameters
        ----------
        fingerprint : dict
        settings : Settings
        tokens : int32 array [n]

        Returns
        -------
        Found or None
            None if no entry shares `LEAST` tokens.
        """
        kind, chain = kind_of(fingerprint, settings), page_chain(tokens)
        for _, path in sorted(self._sharing(kind, chain), reverse=True):
            found = self._open(path, tokens)
            if found is not None and found.n_common >= LEAST:
                card = read_card(path)
                write_card(path, card | {"uses": card["uses"] + 1})
                return found
            if found is not None:
                found.close()
        return None

    def _sharing(self, kind: str, chain: list[str]) -> list[tuple[int, Path]]:
        """Entries that begin with the same pages of at least `LEAST` tokens, and how many."""
        shared = []
        for path in self._paths():
            if path.name.startswith(f"{kind}-"):
                same = [a == b for a, b in zip(chain, read_card(path)["chain"], strict=False)]
                n_pages = same.index(False) if False in same else len(same)
                if n_pages * PAGE >= LEAST:
                    shared.append((n_pages, path))
        return shared

    def _open(self, path: Path, tokens: np.ndarray) -> Found | None:
        """Open an entry under a shared lock; None if it is being evicted, or was damaged."""
        try:
            fd = os.open(path / "header", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            snapshot = Snapshot(path)
        except OSError:
            os.close(fd)
            return None
        except SessionDamagedError:
            os.close(fd)
            self.discard(path)
            return None
        n = min(len(tokens), snapshot.n_tokens)
        differ = np.flatnonzero(tokens[:n] != snapshot.tokens[:n])
        return Found(snapshot, int(differ[0]) if len(differ) else n, fd)

    def store(self, image: Image, read_s: float, title: str = "") -> bool:
        """Keep a sequence, unless it is too short or larger than the library may be.

        One that begins like a longer entry is there already.

        Parameters
        ----------
        image : Image
        read_s : float
            Seconds that reading it took.
        title : str
            Names of the documents, for people.

        Returns
        -------
        bool
            Whether it is there now.

        Raises
        ------
        SessionWriteError
            The disk is full or failed.
        """
        tokens, kind = image.tokens, kind_of(image.fingerprint, image.settings)
        chain, text = page_chain(tokens), xxh3_128(tokens.astype("<i4").tobytes()).hexdigest()
        path = self.path / f"{kind}-{text}"
        pages = [layer.pages for layer in image.layers.values()]
        n_bytes = sum(each.page_bytes * int(each.n_pages.sum()) for each in pages)
        if len(tokens) < LEAST or n_bytes > self.max_bytes:
            return False
        with self._writing():
            if path.exists() or any(n == len(chain) for n, _ in self._sharing(kind, chain)):
                return True
            self._make_room(n_bytes)
            try:
                write_snapshot(path, image)
                card = {"n_tokens": len(tokens), "uses": 0, "read_s": read_s, "chain": chain}
                write_card(path, card | {"title": title})
            except OSError as error:
                raise SessionWriteError(
                    f"{self.path} could not be written ({error.strerror}); free some space."
                ) from None
            self._make_room(0)
        return True

    def entries(self) -> list[Entry]:
        """All entries, the least valuable first."""
        now = time.time()
        return sorted(map(read_entry, self._paths()), key=lambda entry: entry.value(now))

    def _paths(self) -> list[Path]:
        return sorted(path for path in self.path.iterdir() if NAME.fullmatch(path.name))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Wait for other writers, and clear away what a killed one left."""
        fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            for path in self.path.iterdir():
                left = NAME.fullmatch(path.stem) and path.suffix
                if left in (".new", ".evicted"):
                    shutil.rmtree(path, ignore_errors=True)
                elif left == ".card" and not path.with_suffix("").exists():
                    path.unlink(missing_ok=True)
            yield
        finally:
            os.close(fd)

    def _make_room(self, n_bytes: int) -> None:
        """Evict until `n_bytes` more would fit; entries that are open stay."""
        entries = self.entries()
        total = n_bytes + sum(entry.n_bytes for entry in entries)
        for entry in entries:
            if total <= self.max_bytes:
                return
            if self.discard(entry.path):
                total -= entry.n_bytes

    def remove(self, name: str) -> bool:
        """Remove the entry of this name, unless somebody has it open; whether it is gone.

        Raises
        ------
        SessionError
            There is no such entry.
        """
        if not NAME.fullmatch(name) or not (self.path / name).exists():
            raise SessionError(f"There is no entry {name} in {self.path}.")
        return self.discard(self.path / name)

    def discard(self, path: Path) -> bool:
        """Remove an entry, unless somebody has it open; whether it is gone."""
        try:
            fd = os.open(path / "header", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            fd = -1  # damaged: nobody can open it
        try:
            if fd >= 0:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            evicted = path.with_name(f"{path.name}.evicted")
            shutil.rmtree(evicted, ignore_errors=True)
            os.rename(path, evicted)
        except OSError:
            return False
        finally:
            if fd >= 0:
                os.close(fd)
        shutil.rmtree(evicted, ignore_errors=True)
        path.with_name(f"{path.name}.card").unlink(missing_ok=True)
        return True
