"""From a model to its session and back."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import handover
from ..config import CacheConfig
from ..errors import ConfigError, ContextFullError, SessionError, SessionMismatchError
from ..gguf_info import read_model_info
from .cells import check_supported, place_cells
from .fingerprint import check_fingerprint, fingerprint_of
from .session import Session
from .settings import Settings
from .snapshot import Image, Layout, Snapshot

if TYPE_CHECKING:
    from ..kv_cache import KVCache
    from ..layer_cache import LayerCache
    from ..llama import IceLlama

LOADERS = 4  # layers loaded at once: some wait for the disk while others are checked


def settings_for(
    session: Session,
    snapshot: Snapshot,
    model_path: str,
    n_ctx: int | None,
    cache: CacheConfig | None,
    n_batch: int | None,
    options: dict[str, object],
) -> Settings:
    """Return the settings to load a model with for a session, before that takes any time.

    Parameters
    ----------
    session : Session
    snapshot : Snapshot
        Its snapshot.
    model_path : str
    n_ctx, cache, n_batch : optional
        What the user chose; by default as the session was saved.
    options : dict
        Other options of `llama_cpp.Llama`.

    Raises
    ------
    SessionMismatchError
        Another model, rotary setting or LoRA; or the pages of the cache lie otherwise.
    ContextFullError
        The session's tokens do not fit in `n_ctx`.
    """
    stored, name = snapshot.settings, session.path.name
    n_ctx, cache = n_ctx or stored.n_ctx, cache or stored.cache
    n_batch = min(n_batch or stored.n_batch, n_ctx)
    found = fingerprint_of(read_model_info(model_path), n_ctx, options)
    check_fingerprint(snapshot.fingerprint, found, name)
    n_tokens = session.n_tokens
    if n_tokens > n_ctx:
        raise ContextFullError(
            f"{name} has {n_tokens} tokens, but n_ctx is {n_ctx}: raise n_ctx to more."
        )
    if snapshot.is_sparse:
        for what, before, now in (
            ("sink", stored.cache.sink, cache.sink),
            ("window", stored.cache.window, cache.window),
            ("n_batch", stored.n_batch, n_batch),
        ):
            if before != now:
                raise SessionMismatchError(
                    f"{name} was saved with {what} = {before}, not {now}: leave {what} out."
                )
    elif n_tokens > cache.n_cells(n_batch):
        raise SessionMismatchError(
            f"{name} was saved before its {n_tokens} tokens outgrew the budget of "
            f"{stored.cache.budget}: leave budget out."
        )
    return Settings(cache, n_ctx, n_batch)


def load(llm: IceLlama, snapshot: Snapshot, session: Session | None = None) -> None:
    """Bring a model that has read nothing into the state of a snapshot.

    Parameters
    ----------
    llm : IceLlama
    snapshot : Snapshot
    session : Session, optional
        That the snapshot belongs to: then what was saved later follows, and is reported to it.

    Raises
    ------
    SessionDamagedError
    """
    kv: KVCache = llm._kv
    if {number: kv.shape_of(number) for number in kv.devices} != snapshot.shapes:
        raise SessionMismatchError(f"{snapshot.folder} was saved with another model.")
    if not snapshot.is_sparse:
        tokens, layout = _latest(snapshot, session, {})
        pages = {number: snapshot.ordered_pages(number) for number in kv.devices}
        place_cells(llm.ctx, kv.devices, _positions(layout, len(tokens)))
        handover.adopt_dense(kv, layout.cells, pages)
    else:
        cells, n_real = snapshot.layout
        n_carriers = len(cells) - n_real
        same_budget = snapshot.settings.cache.budget == kv.config.budget
        if not same_budget:
            n_carriers = min(kv.config.budget - 2, (session or snapshot).n_tokens - 1)
        layers = kv.new_layers(np.arange(n_carriers, dtype=np.int32))  # told later
        with ThreadPoolExecutor(LOADERS) as pool:
            list(pool.map(lambda item: snapshot.load_layer(*item, lazy=True), layers.items()))
        tokens, layout = _latest(snapshot, session, layers)
        if not same_budget:
            layout = Layout(np.arange(n_carriers + 1, dtype=np.int32), 1)
            if session is not None:
                session.journal.lost()  # its snapshot has other slots
        place_cells(llm.ctx, kv.devices, _positions(layout, len(tokens)))
        handover.adopt(kv, len(tokens), layout.cells, layout.n_real, layers)
    kv.journal = session and session.journal
    llm.input_ids[: len(tokens)] = tokens
    llm.n_tokens = len(tokens)
    llm._requires_eval = True  # there are no logits yet


def _latest(
    snapshot: Snapshot, session: Session | None, layers: dict[int, LayerCache]
) -> tuple[np.ndarray, Layout]:
    """Redo a session's journal, if there is one; tokens and layout."""
    if session is None:
        return snapshot.tokens, snapshot.layout
    return session.replay(snapshot, layers)


def _positions(layout: Layout, n_tokens: int) -> np.ndarray:
    """Position in each cell, int32 [C + n_real]."""
    cells, n_real = layout
    positions = np.zeros(len(cells), np.int32)
    positions[cells] = np.concatenate(
        [np.arange(len(cells) - n_real), np.arange(n_tokens - n_real, n_tokens)]
    )
    return positions


def save(llm: IceLlama, session: Session, notes: dict, compact: bool = False) -> None:
    """Make the state of a model that of the session.

    Raises
    ------
    SessionError
        Nothing has been read yet.
    UnsupportedModelError
        The model keeps more than K and V; see `check_supported`.
    SessionWriteError
    """
    session.save(image_of(llm), notes, compact)
    llm._kv.journal = session.journal


def image_of(llm: IceLlama) -> Image:
    """Return all that is stored of what a model has read.

    Raises
    ------
    SessionError
        Nothing has been read yet.
    UnsupportedModelError
    """
    kv: KVCache = llm._kv
    kv.truncate(llm.n_tokens)
    if not kv.n_tokens:
        raise SessionError("There is nothing to save: read a prompt first.")
    layout = Layout(*handover.layout(kv))
    check_supported(llm.ctx, kv.devices, len(layout.cells))
    tokens = llm.input_ids[: kv.n_tokens].astype(np.int32)
    layers = kv.layers if kv.sparse else handover.ordered_layers(kv)
    return Image(*identity_of(llm), tokens, layout, layers)


def identity_of(llm: IceLlama) -> tuple[dict[str, object], Settings]:
    """Fingerprint and settings of a model."""
    kv: KVCache = llm._kv
    fingerprint = fingerprint_of(llm._info, kv.n_ctx, llm._llama_options)
    return fingerprint, Settings(kv.config, kv.n_ctx, kv.n_batch)


def opened(
    cls: type[IceLlama],
    path: Path,
    model_path: str,
    n_ctx: int | None,
    cache: CacheConfig | None,
    n_batch: int | None,
    options: dict[str, object],
) -> IceLlama:
    """Load a model in the state of a session; see `IceLlama.open_session`."""
    session = Session(path)
    try:
        snapshot = session.snapshot()
        chosen = settings_for(session, snapshot, model_path, n_ctx, cache, n_batch, options)
        llm = cls(
            model_path, n_ctx=chosen.n_ctx, cache=chosen.cache, n_batch=chosen.n_batch, **options
        )
        try:
            load(llm, snapshot, session)
        except BaseException:
            llm.close()
            raise
    except BaseException:
        session.close()
        raise
    llm._session = session
    return llm


def started(path: Path) -> Session:
    """Make a new session; see `IceLlama.start_session`."""
    session = Session(path, create=True)
    if not session.is_new:
        session.close()
        raise SessionError(f"There is a session at {path} already: open it, or choose another.")
    return session


def save_to(llm: IceLlama, path: Path | None, notes: dict | None, compact: bool) -> None:
    """Save into the session that was opened, or into another; see `IceLlama.save_session`."""
    own = llm._session
    try:
        json.dumps(notes, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"notes must be plain JSON: {error}.") from None
    if own is not None and (path is None or own.path.absolute() == path.absolute()):
        save(llm, own, own.notes if notes is None else notes, compact)
        return
    if path is None:
        raise SessionError("No session is open: pass the path of a folder to save to.")
    other = Session(path, create=True)
    try:
        save(llm, other, other.notes if notes is None else notes, compact)
    finally:
        other.close()
        llm._kv.journal = own.journal if own else None
