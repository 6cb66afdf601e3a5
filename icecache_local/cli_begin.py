"""What a conversation on the command line begins with: files, or a session that goes on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import click

from . import embedded
from .cli_options import cache_config
from .config import CacheConfig
from .conversation import Conversation, read_documents
from .errors import ConfigError
from .sessions.describe import Description, describe, session_folder
from .sessions.saved_chat import check_documents, from_notes
from .sessions.state import STATE


@dataclass(frozen=True)
class TalkOptions:
    """The options of ask and chat; None where the user left the choice to us."""

    model: str | None
    files: tuple[str, ...]
    n_ctx: int | None
    budget: int
    sink: int | None
    window: int | None
    ram_limit: int | None
    unread: float | None
    reuse_layers: int
    threads: int | None
    n_gpu_layers: int
    seed: int | None
    temperature: float | None
    max_tokens: int
    session: str | None
    library: str | None
    library_size: float
    as_json: bool


@dataclass(frozen=True)
class Beginning:
    """What to load, and what has been said.

    Attributes
    ----------
    model : Path
    cache : CacheConfig
    conversation : Conversation
    folder : Path, optional
        Of the session.
    stored : Description, optional
        Of the session, where it exists already.
    """

    model: Path
    cache: CacheConfig
    conversation: Conversation
    folder: Path | None
    stored: Description | None


def begin(chosen: TalkOptions) -> Beginning:
    """Check options, files and session; nothing is loaded.

    Raises
    ------
    click.UsageError
        The cache options contradict each other.
    IceCacheError
        A file cannot be read, or the session was begun with others.
    """
    folder = session_folder(chosen.session) if chosen.session else None
    stored = describe(folder) if folder and (folder / STATE).exists() else None
    documents = read_documents(chosen.files)
    if stored is None:
        model = Path(chosen.model) if chosen.model else embedded.model_path()
        cache = cache_config(
            *(chosen.budget, chosen.sink, chosen.window, chosen.ram_limit, chosen.unread),
            chosen.reuse_layers,
        )
        conversation = Conversation(documents, is_embedded=not chosen.model)
        return Beginning(model, cache, conversation, folder, None)
    conversation, model = from_notes(stored.notes, stored.path.name)
    check_documents(conversation, documents, stored.path.name)
    model = Path(chosen.model) if chosen.model else model or embedded.model_path()
    return Beginning(model, _cache_of(stored, chosen), conversation, folder, stored)


def _cache_of(stored: Description, chosen: TalkOptions) -> CacheConfig:
    """Return the settings of a session, but for those that the user gave."""
    context = click.get_current_context()
    given = click.core.ParameterSource.COMMANDLINE
    names = ("budget", "sink", "window")
    changed = {n: getattr(chosen, n) for n in names if context.get_parameter_source(n) is given}
    try:
        changed |= {n: getattr(chosen, n) for n in ("ram_limit", "unread", "reuse_layers")}
        return replace(stored.settings.cache, **changed)
    except ConfigError as error:
        raise click.UsageError(str(error)) from None
