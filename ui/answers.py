"""Asking, and what can be done with an answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import gradio as gr

from icecache_local.errors import IceCacheError

from . import render
from .chats import Chat, Sampling, Turn
from .events import Done, Event, Meters, Reading, Text
from .page import Page, Updates, busy, idle, sentence, turn_of

REFRESH = 0.05  # seconds between two updates of a streaming answer


class AnswerPanel:
    """Handlers of the events around answers; all return updates by component names.

    Parameters
    ----------
    page : Page
    """

    def __init__(self, page: Page) -> None:
        self.page, self.engine, self.store = page, page.engine, page.store

    def stop(self, request: gr.Request) -> None:
        """End what this tab has the model do."""
        self.engine.worker.stop(request.session_hash)

    def begin(self, question: str, key: str) -> Updates:
        """Show the question at once, and that it waits if another one is being answered."""
        busy_now = self.engine.worker.busy
        waiting = "Another answer is being written; yours comes next." if busy_now else ""
        messages = self.store.get(key).messages()
        if question.strip():
            messages.append({"role": "user", "content": question})
        return {
            "pending": question,
            "box": gr.update(value="", submit_btn=False, stop_btn=True),
            "chatbot": messages,
            "notice": render.notice(waiting, "info"),
        }

    def ask(
        self, request: gr.Request, question: str, key: str, *settings: Any
    ) -> Iterator[Updates]:
        """Answer a new question."""
        chat = self.store.get(key)
        yield from self._answer(chat, len(chat.turns), question, "", settings, request.session_hash)

    def again(self, request: gr.Request, key: str, *settings: Any) -> Iterator[Updates]:
        """Answer the last question anew."""
        chat = self.store.get(key)
        question = chat.turns[-1].question if chat.turns else ""
        yield from self._answer(
            chat, len(chat.turns) - 1, question, "", settings, request.session_hash
        )

    def more(self, request: gr.Request, key: str, *settings: Any) -> Iterator[Updates]:
        """Continue the last answer."""
        chat = self.store.get(key)
        turn = chat.turns[-1] if chat.turns else Turn("")
        yield from self._answer(
            chat,
            len(chat.turns) - 1,
            turn.question,
            turn.answer,
            settings,
            request.session_hash,
        )

    def edit(
        self, request: gr.Request, event: gr.EditData, key: str, *settings: Any
    ) -> Iterator[Updates]:
        """Ask an earlier question in other words; what came after it is dropped."""
        chat = self.store.get(key)
        index = event.index[0] if isinstance(event.index, (list, tuple)) else event.index
        yield from self._answer(
            chat, turn_of(chat, index), str(event.value), "", settings, request.session_hash
        )

    def _answer(
        self, chat: Chat, index: int, question: str, partial: str, settings: tuple, owner: str
    ) -> Iterator[Updates]:
        if not question.strip() or index < 0:
            yield idle()
            return
        chat.system, chat.sampling = settings[0], Sampling(*settings[1:])
        turn, kept, message = Turn(question.strip(), partial), chat.turns[index:], ""
        chat.turns[index:] = [turn]
        self.page.answering[chat.id] = owner
        try:
            yield {**busy(), "chatbot": chat.messages(), "notice": ""}
            yield from self._stream(chat, turn, index, owner)
        except (IceCacheError, MemoryError) as error:
            message = render.notice(sentence(error))
        finally:
            self.page.answering.pop(chat.id, None)
            if not turn.answer:  # nothing was said: what was there stays, the question comes back
                chat.turns[index:] = kept
            self.store.save(chat)
        updates = {**self.page.view(chat), **idle(), "notice": message}
        if not turn.answer and not kept:
            updates["box"] = gr.update(value=question, submit_btn=True, stop_btn=False)
        yield updates

    def _stream(self, chat: Chat, turn: Turn, index: int, owner: str) -> Iterator[Updates]:
        conversation = self.store.conversation(chat, index, self.engine.is_embedded)
        documents = [(key, self.store.document(key).text) for key in chat.documents]
        sampling = asdict(chat.sampling)
        sampling["seed"] = None if sampling["seed"] < 0 else sampling["seed"]
        events = self.engine.answer(
            owner, conversation, turn.question, turn.answer, sampling, documents
        )
        shown = 0.0
        for event in events:
            if self.store.is_deleted(chat):
                events.close()
                return
            self._take(turn, event)
            if isinstance(event, (Reading, Text)) and time.monotonic() - shown > REFRESH:
                shown = time.monotonic()
                # All of it each time: the tab may have come back from another chat.
                reading = render.reading_bar(event) if isinstance(event, Reading) else ""
                yield {**busy(), "reading": reading, "chatbot": chat.messages()}

    def _take(self, turn: Turn, event: Event) -> None:
        if isinstance(event, Text):
            turn.answer = event.text
        elif isinstance(event, Meters):
            self.page.meters = event
        elif isinstance(event, Done):
            turn.answer, turn.looks = event.text, event.looks
