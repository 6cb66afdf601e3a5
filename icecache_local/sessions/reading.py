"""Reading a text with a library at hand: from there as far as it goes, the rest by the model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import SessionError, SessionWriteError
from .library import Library
from .resume import identity_of, image_of, load

if TYPE_CHECKING:
    from ..llama import IceLlama


def read(
    llm: IceLlama,
    tokens: Sequence[int],
    library: Library,
    warn: Callable[[str], None],
    title: str = "",
) -> int:
    """Make a model that has read nothing read `tokens`, and keep them in the library.

    Parameters
    ----------
    llm : IceLlama
    tokens : sequence of int
    library : Library
    warn : callable
        Called with a sentence where the library cannot be used; the model reads all the same.
    title : str
        Names of the documents, for the library's list.

    Returns
    -------
    int
        Tokens that came from the library.
    """
    n_common = _open(llm, np.array(tokens, np.int32), library, warn)
    rest = list(tokens[n_common:])
    if rest:
        start = time.perf_counter()
        llm.n_tokens = n_common
        llm._prompt_next = True  # a single token is to be read exactly, too
        llm.eval(rest)
        seconds = (time.perf_counter() - start) / len(rest) * len(tokens)
        try:
            library.store(image_of(llm), seconds, title)
        except SessionWriteError as error:
            warn(str(error))
    return n_common


def _open(llm: IceLlama, tokens: np.ndarray, library: Library, warn: Callable[[str], None]) -> int:
    """Load what the library has of `tokens`; how many that are."""
    found = library.find(*identity_of(llm), tokens)
    if found is None:
        return 0
    try:
        if not fits(llm, found.snapshot.n_tokens, found.snapshot.is_sparse):
            return 0
        load(llm, found.snapshot)
    except SessionError as error:
        llm.reset()
        found.close()  # so that it may go
        library.discard(found.snapshot.folder)
        warn(f"{error} It was removed from the library.")
        return 0
    finally:
        found.close()
    return found.n_common


def fits(llm: IceLlama, n_tokens: int, is_sparse: bool) -> bool:
    """Whether a stored sequence has room in this model's cache."""
    return n_tokens <= (llm.n_ctx() if is_sparse else min(llm.n_ctx(), llm._kv.n_cells))
