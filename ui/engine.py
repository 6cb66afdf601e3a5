"""The one loaded model: everything that touches it runs in one thread, one job after another."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from icecache_local import CacheConfig, embedded
from icecache_local.conversation import Conversation, Document, open_model
from icecache_local.demo import WARM_UP_TOKENS, warm_up
from icecache_local.errors import ContextFullError, IceCacheError
from icecache_local.gguf_info import ModelInfo, read_model_info
from icecache_local.planner import check_fits
from icecache_local.prompts import stream
from icecache_local.sessions.reading import read
from icecache_local.support import is_storable

from .events import Done, Event, Meters, Stopped, Text, Warned
from .passages import Look, looks
from .worker import Worker

if TYPE_CHECKING:
    from icecache_local import CacheStats, IceLlama
    from icecache_local.sessions.describe import Description
    from icecache_local.sessions.library import Library

DEFAULT_N_CTX = 65536  # context proposed for a model that was trained for as much


class Engine:
    """Loads models, reads documents and answers; usable from any thread.

    Parameters
    ----------
    library : Library, optional
        Documents that it has are not read again, and others are kept there.
    """

    def __init__(self, library: Library | None = None) -> None:
        self.library = library
        self.worker = Worker()
        self._swap = threading.RLock()  # held while the model is exchanged
        self._llm: IceLlama | None = None
        self._pieces: dict[int, bytes] = {}
        self.info: ModelInfo | None = None
        self.config = CacheConfig()
        self.n_ctx = 0

    @property
    def is_embedded(self) -> bool:
        """Whether the embedded model is the loaded one."""
        return self.info is not None and self.info.path == embedded.model_path()

    def warm_up(self) -> None:
        """Have the kernels compiled in the background, so that the first answer comes quickly."""
        self.worker.later(_compile_kernels)

    # -- model ---------------------------------------------------------------------------------

    def load(self, path: Path, n_ctx: int, config: CacheConfig) -> None:
        """Load a model instead of the present one, which stays if the new one does not work.

        Parameters
        ----------
        path : Path
        n_ctx : int
            Tokens of the context.
        config : CacheConfig

        Raises
        ------
        IceCacheError
            With one sentence for the user.
        """
        info = read_model_info(path)
        self.worker.wait_for(self._load, info, n_ctx, config)

    def open_session(self, session: Description, path: Path) -> None:
        """Load the model of a session (the file at `path`) in the state that was saved.

        The model that was loaded stays if that does not work.

        Raises
        ------
        IceCacheError
            With one sentence for the user.
        """
        info, settings = read_model_info(path), session.settings
        self.worker.wait_for(self._load, info, settings.n_ctx, settings.cache, session.path)

    def _load(
        self, info: ModelInfo, n_ctx: int, config: CacheConfig, session: Path | None = None
    ) -> None:
        with self._swap:
            self._exchange(info, n_ctx, config, session)

    def _exchange(
        self, info: ModelInfo, n_ctx: int, config: CacheConfig, session: Path | None
    ) -> None:
        before = (self.info.path, self.n_ctx, self.config) if self.info else None
        self._close()
        try:
            check_fits(info, config, n_ctx)
            self._open(info, n_ctx, config, session)
        except Exception as error:
            if before is not None:
                self._open(read_model_info(before[0]), *before[1:])
            if isinstance(error, IceCacheError):
                raise
            raise IceCacheError(
                f"llama.cpp cannot load {info.path.name} ({error}); try another file or a shorter "
                f"context."
            ) from error

    def _open(
        self, info: ModelInfo, n_ctx: int, config: CacheConfig, session: Path | None = None
    ) -> None:
        self._llm = open_model(
            info.path,
            n_ctx=n_ctx,
            cache=config,
            progress=self.worker.progress,
            attribution=True,
            session=session,
        )
        self._llm.close_session()  # other chats follow in this model; saving is asked for
        self.info, self.n_ctx, self.config, self._pieces = info, n_ctx, config, {}

    def close(self) -> None:
        """Free the model."""
        self.worker.wait_for(self._close)

    def _close(self) -> None:
        if self._llm is not None:
            self._llm.close()
        self._llm, self.info = None, None

    def _loaded(self) -> IceLlama:
        if self._llm is None:
            raise IceCacheError("No model is loaded; choose one under Model.")
        return self._llm

    def count(self, texts: list[str]) -> list[int]:
        """Tokens of each text; 0 while no model is loaded."""
        with self._swap:  # not in the worker: the vocabulary may be used while it answers
            if self._llm is None:
                return [0] * len(texts)
            return [len(self._llm.tokenize(text.encode(), add_bos=False)) for text in texts]

    # -- reading and answering -----------------------------------------------------------------

    def read(self, owner: str, conversation: Conversation) -> Iterator[Event]:
        """Read the documents of a conversation, so that its first answer comes at once.

        Yields
        ------
        Reading, then Meters

        Raises
        ------
        ContextFullError
        """
        return self.worker.events(owner, lambda: self._read(conversation))

    def _read(self, conversation: Conversation) -> None:
        self._read_tokens(conversation.shared_tokens(self._loaded()), conversation.documents)

    def _read_tokens(self, tokens: list[int], documents: list[Document]) -> None:
        llm = self._loaded()
        before = llm.cache_stats
        if len(tokens) >= self.n_ctx:
            raise self._full(len(tokens))
        held, wanted = llm.input_ids[: llm.n_tokens], np.array(tokens)
        n = min(len(held), len(wanted))
        differ = np.flatnonzero(held[:n] != wanted[:n])
        n_common = int(differ[0]) if len(differ) else n
        if n_common == len(tokens):
            return
        try:
            if self._uses_library and documents and n_common < len(tokens) // 2:
                llm.reset()
                title = ", ".join(document.name for document in documents)
                read(llm, tokens, self.library, lambda text: self.worker.emit(Warned(text)), title)
            else:
                next(llm.generate(tokens, temp=0.0))
        except Stopped:
            pass
        self._report(llm, before)

    @property
    def _uses_library(self) -> bool:
        """Whether there is a library, and the model's sequences can be stored."""
        return self.library is not None and self.info is not None and is_storable(self.info)

    def save_session(
        self, owner: str, conversation: Conversation, path: Path, notes: dict
    ) -> Iterator[Event]:
        """Save a conversation as a session; what the model does not hold of it is read first.

        Yields
        ------
        Reading, then Meters

        Raises
        ------
        ContextFullError, SessionError, UnsupportedModelError
        """
        return self.worker.events(owner, lambda: self._save_session(conversation, path, notes))

    def _save_session(self, conversation: Conversation, path: Path, notes: dict) -> None:
        llm = self._loaded()
        self._read(conversation)
        if conversation.turns:
            *earlier, (question, answer) = conversation.turns
            before = Conversation(
                conversation.documents, conversation.is_embedded, conversation.system
            )
            for turn in earlier:
                before.add(*turn)
            self._read_tokens(before.rendered(llm, question, answer).tokens, [])
        if self.worker.is_stopped:
            raise IceCacheError("Stopped while reading; nothing was saved.")
        llm.save_session(path, notes=notes)

    def answer(
        self,
        owner: str,
        conversation: Conversation,
        question: str,
        partial: str,
        sampling: dict[str, Any],
        documents: list[tuple[str, str]],
    ) -> Iterator[Event]:
        """Answer a question.

        Parameters
        ----------
        owner : str
            Who may `stop` it.
        conversation : Conversation
        question : str
        partial : str
            Beginning of the answer, to be continued; else empty.
        sampling : dict
            Options of `create_completion`.
        documents : list of (id, text)
            Documents to search for what the answer looked at.

        Yields
        ------
        Reading and Text while it goes on, then Meters and Done

        Raises
        ------
        ContextFullError
        """
        return self.worker.events(
            owner, lambda: self._answer(conversation, question, partial, sampling, documents)
        )

    def _answer(
        self,
        conversation: Conversation,
        question: str,
        partial: str,
        sampling: dict[str, Any],
        documents: list[tuple[str, str]],
    ) -> None:
        llm = self._loaded()
        before = llm.cache_stats
        try:
            prompt = conversation.rendered(llm, question, partial)
        except ValueError as error:
            raise IceCacheError(f"The model's chat template refuses this chat: {error}") from error
        if len(prompt.tokens) >= self.n_ctx:
            raise self._full(len(prompt.tokens))
        text, stopped = partial, False
        try:
            for piece in stream(llm, prompt, **sampling):
                text += piece if text else piece.lstrip()
                self.worker.emit(Text(text))
                if self.worker.is_stopped:
                    stopped = True
                    break
        except Stopped:
            stopped = True
        self._report(llm, before)
        self.worker.emit(Done(text, stopped, self._looks(llm, documents)))

    def _full(self, n_tokens: int) -> ContextFullError:
        return ContextFullError(
            f"This chat has {n_tokens:,} tokens, but the context holds {self.n_ctx:,}: load the "
            f"model with a longer context, remove a document or begin a new chat."
        )

    def _report(self, llm: IceLlama, before: CacheStats) -> None:
        now = llm.cache_stats
        prefill_s, decode_s = now.prefill_s - before.prefill_s, now.decode_s - before.decode_s
        self.worker.emit(
            Meters(
                (now.prefill_tokens - before.prefill_tokens) / prefill_s if prefill_s else 0.0,
                (now.decode_tokens - before.decode_tokens) / decode_s if decode_s else 0.0,
                now,
                self.n_ctx,
            )
        )

    def _looks(self, llm: IceLlama, documents: list[tuple[str, str]]) -> list[Look]:
        mass = llm.looked_at()
        if not mass.any():
            return []
        return looks(
            [self._piece(llm, int(t)) for t in llm.input_ids[: len(mass)]], mass, documents
        )

    def _piece(self, llm: IceLlama, token: int) -> bytes:
        if token not in self._pieces:
            self._pieces[token] = llm.detokenize([token], special=True)
        return self._pieces[token]


def _compile_kernels() -> None:
    """Use every kernel once; they are the same for all models, so the smallest will do."""
    n_ctx = 2 * WARM_UP_TOKENS
    with closing(open_model(embedded.model_path(), n_ctx=n_ctx, cache=CacheConfig())) as llm:
        warm_up(llm)
