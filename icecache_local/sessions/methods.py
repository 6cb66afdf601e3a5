"""What `IceLlama` can do with sessions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..config import CacheConfig
from ..errors import SessionError

if TYPE_CHECKING:
    from typing import Self

    from .session import Session


class SessionMethods:
    """Opening, saving and closing the session of a model."""

    _session: Session | None = None

    @classmethod
    def open_session(
        cls,
        path: str | Path,
        *,
        model_path: str,
        n_ctx: int | None = None,
        cache: CacheConfig | None = None,
        n_batch: int | None = None,
        **llama_options: object,
    ) -> Self:
        """Load a model and go on where a session was saved.

        The session belongs to this object until `close`.

        Parameters
        ----------
        path : str or Path
            The session's folder.
        model_path : str
            The model that it was saved with.
        n_ctx, cache, n_batch : optional
            By default as it was saved. n_ctx, budget and candidate_pages may be others; sink,
            window and n_batch may not.
        **llama_options
            All others of `IceLlama`.

        Raises
        ------
        SessionError
            There is none, it is damaged, open elsewhere, or of another model; one sentence each.
        ContextFullError
            `n_ctx` is less than the session's tokens.
        """
        from .resume import opened

        return opened(cls, Path(path), str(model_path), n_ctx, cache, n_batch, llama_options)

    def start_session(self, path: str | Path) -> None:
        """Make a new session that belongs to this object until `close`; it is empty so far.

        Raises
        ------
        SessionError
            There is one at `path` already, or this object has one.
        """
        from .resume import started

        if self._session is not None:
            raise SessionError(f"{self._session.path} is open; close this model first.")
        self._session = started(Path(path))

    def save_session(
        self,
        path: str | Path | None = None,
        notes: dict | None = None,
        compact: bool = False,
    ) -> None:
        """Save the sequence, so that `open_session` can go on from here in another process.

        The first time everything is written; into the session that this object was opened from
        only what is new. It is saved when this returns: a crash later loses nothing of it.

        Parameters
        ----------
        path : str or Path, optional
            A folder, made where it is missing; a session that is there is replaced. By default
            the session that was opened or started.
        notes : dict, optional
            Plain JSON of the application's own, such as what was said; see `session_notes`. By
            default what was there stays.
        compact : bool
            Take the time to write all anew where opening would have much to insert again.

        Raises
        ------
        SessionError
            Nothing has been read, or another process has the session open.
        SessionWriteError
            The disk is full; the session is as it was saved before.
        UnsupportedModelError
            The model keeps more than K and V.
        """
        from .resume import save_to

        save_to(self, path if path is None else Path(path), notes, compact)

    @property
    def session_notes(self) -> dict:
        """What was last saved as notes in the session that was opened; {} without one."""
        return self._session.notes if self._session else {}

    def close_session(self) -> None:
        """Let others open the session; this object goes on without it.

        What was not saved is not in it, and nothing more will be.
        """
        if self._session is not None:
            self._session.close()
            self._session = self._kv.journal = None

    def close(self) -> None:
        """Free the model, and let others open the session."""
        if self._session is not None:
            self._session.close()
            self._session = None
        super().close()
