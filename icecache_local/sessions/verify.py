"""Reading every byte of a session, without its model."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import SessionDamagedError
from ..layer_cache import LayerCache
from ..stats import Counters
from .files import ADVICE
from .session import Session
from .snapshot import Snapshot


class _NoDevice:
    """Stands in for cells: nothing is ever selected here."""

    in_place = False


def verify_session(folder: Path) -> int:
    """Check all checksums and tables of a session, and redo its journal.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    int
        Tokens of the session.

    Raises
    ------
    SessionError
        There is none, or it is open elsewhere.
    SessionDamagedError
        The sentence names the file.
    """
    session = Session(folder)
    try:
        snapshot = session.snapshot()
        layers = verify_snapshot(snapshot)
        tokens, _ = session.replay(snapshot, layers)
        return len(tokens)
    finally:
        session.close()


def verify_snapshot(snapshot: Snapshot) -> dict[int, LayerCache]:
    """Check all checksums and tables of a snapshot; its layers, none in the dense phase.

    Raises
    ------
    SessionDamagedError
    """
    layers: dict[int, LayerCache] = {}
    for number in snapshot.shapes:
        if snapshot.is_sparse:
            layers[number] = _load(snapshot, number)
        else:
            snapshot.ordered_pages(number)
    return layers


def _load(snapshot: Snapshot, number: int) -> LayerCache:
    settings, layout = snapshot.settings, snapshot.layout
    carriers = np.arange(len(layout.cells) - layout.n_real, dtype=np.int32)
    try:
        cache = LayerCache(
            number,
            snapshot.shapes[number],
            settings.cache,
            _NoDevice(),
            carriers,
            settings.n_ctx,
            settings.n_batch,
            Counters(),
        )
    except (OSError, MemoryError, OverflowError, ValueError) as error:
        raise SessionDamagedError(f"{snapshot.folder} is damaged; {ADVICE}.") from error
    snapshot.load_layer(number, cache)
    return cache
