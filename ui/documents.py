"""The documents of a chat: dropped, removed, chosen again, or the sample."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import gradio as gr

from icecache_local import embedded
from icecache_local.conversation import Document
from icecache_local.errors import IceCacheError
from icecache_local.hidden_facts import build_text, draw_facts

from . import render
from .chats import Chat
from .page import Page, Updates
from .readers import read_document

SAMPLE_FACTS, SAMPLE_WORDS = 12, 13500  # some 30,000 tokens


class DocumentPanel:
    """Handlers of the events around documents; all return updates by component names.

    Parameters
    ----------
    page : Page
    """

    def __init__(self, page: Page) -> None:
        self.page, self.engine, self.store = page, page.engine, page.store

    def add_files(self, request: gr.Request, paths: list[str], key: str) -> Iterator[Updates]:
        """Read dropped files into the chat's documents, then let the model read them."""
        chat = self.store.get(key)
        problems, added = [], []
        for path in paths or []:
            try:
                added.append(self.store.add_document(read_document(path)))
            except IceCacheError as error:
                problems.append(str(error))
        yield from self._add(chat, added, problems, request.session_hash)

    def _add(
        self, chat: Chat, added: list[str], problems: list[str], owner: str
    ) -> Iterator[Updates]:
        free = self.engine.n_ctx - sum(map(self.page.count, chat.documents))
        for key in added:
            size = self.page.count(key)
            if key in chat.documents:
                continue
            if size >= free:
                problems.append(
                    f"{self.store.document(key).name} has {size:,} tokens, but only "
                    f"{max(0, free):,} of {self.engine.n_ctx:,} are free: load the model with a "
                    f"longer context, or remove a document."
                )
                continue
            chat.documents.append(key)
            free -= size
        self.store.save(chat)
        message = render.notice(" ".join(problems))
        yield {**self.page.view(chat), "notice": message, "files": None}
        yield from self._read(chat, owner, message)

    def _read(self, chat: Chat, owner: str, message: str) -> Iterator[Updates]:
        """Let the model read the documents of a chat."""
        if not chat.documents or self.engine.info is None:
            return
        conversation = self.store.conversation(chat, 0, self.engine.is_embedded)
        yield from self.page.follow(self.engine.read(owner, conversation), message)

    def choose(
        self, request: gr.Request, keys: list[str], shown: str, key: str
    ) -> Iterator[Updates]:
        """Remove documents from the chat, or add some that are known.

        The event comes for what the page shows by itself too, and it may have waited while a
        file was dropped: what counts is how `keys` differ from the documents then `shown`.
        """
        chat, before = self.store.get(key), shown.split()
        removed = set(before) - set(keys)
        added = [k for k in keys if k not in before]
        if not removed and not added:
            yield {"documents": gr.skip()}
            return
        chat.documents = [k for k in chat.documents if k not in removed]
        yield from self._add(chat, added, [], request.session_hash)

    def sample(self, request: gr.Request, key: str) -> Iterator[Updates]:
        """Add a long text with hidden facts, and propose a question."""
        facts = draw_facts(Random(1), SAMPLE_FACTS)
        text = build_text(Random(1), facts, SAMPLE_WORDS)
        lines = text.replace(". ", ".\n").replace(" The secret code", "\nThe secret code")
        document = Document("sample.txt", lines + "\n")
        names = ", ".join(fact.name for fact in facts[1:5])
        hint = f"{len(facts)} secret codes are hidden in this text, also those of {names}."
        chat, added = self.store.get(key), [self.store.add_document(document)]
        yield {"box": embedded.question(facts[0].name)}
        for updates in self._add(chat, added, [], request.session_hash):
            if updates.get("notice") == "":
                updates["notice"] = render.notice(hint, "info")
            yield updates
