"""A session: a folder with a snapshot, a journal behind it, and a state file that names both."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import SessionDamagedError, SessionError, SessionWriteError
from ..layer_cache import LayerCache
from .files import ADVICE, write_json
from .journal import Journal, read_records
from .lock import Lock
from .replay import Replay
from .snapshot import Image, Layer, Layout, Snapshot, write_snapshot
from .state import STATE, has_other_files, read_state, remove_files

JOURNAL_LEAST = 2048  # tokens a journal may always hold
COMPACT_LEAST = 256  # the same for a compact session
COMPACT_SHARE = 8  # a compact session's journal holds at most one in so many of its tokens


class Session:
    """A session that this process may change.

    Parameters
    ----------
    path : Path
        Its folder.
    create : bool
        Make an empty session where there is none.

    Attributes
    ----------
    journal : Journal or None
        What the sequence reports its changes to, once there is a snapshot of its sparse phase.
    notes : dict
        What the application wants back; plain JSON.

    Raises
    ------
    SessionError
        There is no session and `create` is not given.
    SessionLockedError, SessionDamagedError
    """

    def __init__(self, path: Path, create: bool = False) -> None:
        self.path = path
        self.journal: Journal | None = None
        self._opened: Snapshot | None = None
        if create:
            try:
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise SessionError(f"{path} cannot be made: {error.strerror}.") from None
            if not (path / STATE).exists() and has_other_files(path):
                raise SessionError(f"{path} holds other files: choose a folder of its own.")
        elif not (path / STATE).exists():
            raise SessionError(f"There is no session at {path}; save one there first.")
        self._lock = Lock(path)
        try:
            self._state = read_state(path) if (path / STATE).exists() else {}
        except BaseException:
            self._lock.release()
            raise
        self._tidy()

    @property
    def is_new(self) -> bool:
        """Whether nothing has been saved."""
        return not self._state

    @property
    def n_tokens(self) -> int:
        """Tokens of the sequence as last saved."""
        return self._state.get("n_tokens", 0)

    @property
    def notes(self) -> dict:
        """What was last saved as notes."""
        return self._state.get("notes", {})

    def snapshot(self) -> Snapshot:
        """Open the snapshot; its files stay open until `close`, even where it is replaced."""
        self._opened = Snapshot(self.path / self._state["snapshot"])
        return self._opened

    def replay(
        self, snapshot: Snapshot, layers: dict[int, LayerCache]
    ) -> tuple[np.ndarray, Layout]:
        """Bring layers in the snapshot's state to that of the last save, and go on from there.

        Parameters
        ----------
        snapshot : Snapshot
            This session's.
        layers : dict of int to LayerCache
            Empty in the dense phase.

        Returns
        -------
        tokens : int32 array [n]
        layout : Layout

        Raises
        ------
        SessionDamagedError
        """
        damaged = SessionDamagedError(f"{self.path} is damaged; {ADVICE}.")
        stored = self._state["journal"]
        if bool(stored) != bool(layers):
            raise damaged
        if not stored:
            if snapshot.n_tokens != self.n_tokens:
                raise damaged
            return snapshot.tokens, snapshot.layout
        replay = Replay(layers, snapshot.tokens, snapshot.layout, snapshot.settings.cache)
        replay.run(stored_records(self.path, stored))
        name, identity, n_bytes, n_records = stored
        n = len(replay.tokens)
        if n != self.n_tokens:
            raise damaged
        path = self.path / name
        self.journal = Journal(path, bytes.fromhex(identity), n_bytes, n_records, n, layers)
        self.journal.n_appended = replay.n_rows
        return replay.tokens, replay.layout

    def save(self, image: Image, notes: dict, compact: bool = False) -> None:
        """Make the sequence's state that of the session.

        Parameters
        ----------
        image : Image
        notes : dict
        compact : bool
            Leave little to redo for the next time.

        Raises
        ------
        SessionWriteError
            The disk is full or failed; the session is as it was saved before.
        """
        try:
            n_tokens = len(image.tokens)
            if self._goes_on(n_tokens, image.layers, compact):
                self.journal.commit(image.tokens, image.layout)
                self._write_state(self._state["snapshot"], self.journal, n_tokens, notes)
            else:
                self._replace(image, notes)
        except OSError as error:
            if self.journal is not None and not self.journal.is_whole:
                self._drop_journal()
            raise SessionWriteError(
                f"{self.path} could not be saved ({error.strerror}); it is as it was before. "
                "Free some space and save again."
            ) from None

    def _goes_on(self, n_tokens: int, layers: dict[int, Layer], compact: bool) -> bool:
        """Whether the journal can take what happened since the last save."""
        journal = self.journal
        if journal is None or not journal.is_whole or journal.layers is not layers:
            return False
        share = n_tokens // COMPACT_SHARE if compact else n_tokens // 2
        return journal.n_pending <= max(share, COMPACT_LEAST if compact else JOURNAL_LEAST)

    def _replace(self, image: Image, notes: dict) -> None:
        """Write a new snapshot and switch to it."""
        number = int(self._state.get("snapshot", "-0").rpartition("-")[2]) + 1
        folder, journal = self.path / f"snapshot-{number}", None
        try:
            write_snapshot(folder, image)
            if all(isinstance(layer, LayerCache) for layer in image.layers.values()):
                path = self.path / f"journal-{number}"
                journal = Journal.create(path, len(image.tokens), image.layers)
            self._write_state(folder.name, journal, len(image.tokens), notes)
        except BaseException:
            if journal is not None:
                journal.close()
            if (self.path / STATE).exists():  # the switch itself may have succeeded
                self._state = read_state(self.path)
            self._tidy()
            raise
        self._drop_journal()
        self.journal = journal
        self._tidy()

    def _write_state(
        self, snapshot: str, journal: Journal | None, n_tokens: int, notes: dict
    ) -> None:
        stored = journal and [
            journal.path.name, journal.identity.hex(), journal.n_bytes, journal.n_records
        ]  # fmt: skip
        state = {
            "snapshot": snapshot,
            "journal": stored,
            "n_tokens": n_tokens,
            "notes": notes,
        }
        write_json(self.path / STATE, state)
        self._state = state

    def _drop_journal(self) -> None:
        if self.journal is not None:
            self.journal.close()
            self.journal = None

    def _tidy(self) -> None:
        """Remove what an interrupted save left, and what was replaced."""
        journal = self._state.get("journal")
        remove_files(self.path, {self._state.get("snapshot"), journal and journal[0]})

    def close(self) -> None:
        """Let others open the session; what was not saved is lost to it."""
        self._drop_journal()
        if self._opened is not None:
            self._opened.close()
            self._opened = None
        self._lock.release()


def remove_session(path: Path) -> None:
    """Delete a session, damaged or not.

    Raises
    ------
    SessionError
        There is none, or its folder holds other files too.
    SessionLockedError
    """
    if not (path / STATE).exists():
        raise SessionError(f"There is no session at {path}; `sessions list` names all.")
    lock = Lock(path)
    try:
        (path / STATE).unlink()
        remove_files(path, set())
        (path / "lock").unlink()
        path.rmdir()
    except OSError as error:
        raise SessionError(f"{path} could not be removed: {error.strerror}.") from None
    finally:
        lock.release()


def stored_records(path: Path, journal: list) -> object:
    """Read the records of the journal that a state file names."""
    name, identity, n_bytes, n_records = journal
    return read_records(path / name, bytes.fromhex(identity), n_bytes, n_records)
