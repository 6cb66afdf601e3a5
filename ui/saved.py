"""What lies on the disk: saved chats, and the library of texts that were read."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import gradio as gr

from icecache_local import embedded
from icecache_local.conversation import Conversation
from icecache_local.errors import IceCacheError, SessionError
from icecache_local.planner import format_bytes
from icecache_local.sessions.describe import all_sessions, describe, session_folder
from icecache_local.sessions.saved_chat import from_notes, to_notes
from icecache_local.sessions.session import remove_session

from . import render
from .chats import Chat, Turn, file_name
from .page import Page, Updates, sentence

CHAT, TEXT = "chat", "text"  # kinds of what is saved


class SavedPanel:
    """Handlers of the events around what is saved; all return updates by component names.

    Parameters
    ----------
    page : Page
    """

    def __init__(self, page: Page) -> None:
        self.page, self.engine, self.store = page, page.engine, page.store

    def show(self, chosen: str | None = None, key: str | None = None) -> Updates:
        """List everything, the latest first; `key` is the chat that is shown."""
        choices, n_bytes = self._sessions()
        texts, n_text_bytes = self._texts()
        known = {value for _, value in [*choices, *texts]}
        return {
            "saved": gr.update(
                choices=[*choices, *texts], value=chosen if chosen in known else None
            ),
            "saved_cost": render.saved_cost(
                (len(choices), n_bytes), (len(texts), n_text_bytes), self.engine.library is not None
            ),
            **({"saved_name": self._proposal(key)} if key else {}),
        }

    def _sessions(self) -> tuple[list[tuple[str, str]], int]:
        choices, n_bytes = [], 0
        for path in all_sessions():
            try:
                session = describe(path)
            except IceCacheError:
                choices.append((f"{path.name} · damaged", f"{CHAT}:{path.name}"))
                continue
            saved = time.strftime("%d %b %H:%M", time.localtime(session.saved_at))
            size = f"{session.n_tokens:,} tokens · {format_bytes(session.n_bytes)}"
            choices.append((f"{path.name} · {size} · {saved}", f"{CHAT}:{path.name}"))
            n_bytes += session.n_bytes
        return choices, n_bytes

    def _texts(self) -> tuple[list[tuple[str, str]], int]:
        entries = self.engine.library.entries() if self.engine.library is not None else []
        choices = [
            (
                f"{entry.title or 'a text'} · {entry.n_tokens:,} tokens · "
                f"{format_bytes(entry.n_bytes)} · used {entry.n_uses} times",
                f"{TEXT}:{entry.path.name}",
            )
            for entry in sorted(entries, key=lambda entry: -entry.used_at)
        ]
        return choices, sum(entry.n_bytes for entry in entries)

    def _proposal(self, key: str) -> Updates:
        """Show what an empty name stands for; a name that was typed stays."""
        return gr.update(placeholder=self._name(self.store.get(key)))

    def _name(self, chat: Chat) -> str:
        """Propose a name for a chat."""
        names = [self.store.document(key).name for key in chat.documents[:1]]
        name = Path(names[0]).stem if names else file_name(chat).removesuffix(".json")
        return re.sub(r"[^\w. -]", "-", name)[:100]

    # -- saving and opening ----------------------------------------------------------------------

    def save(self, request: gr.Request, name: str, key: str) -> Iterator[Updates]:
        """Save a chat with what the model has read for it."""
        chat, message, engine = self.store.get(key), "", self.engine
        name = name.strip() or self._name(chat)
        try:
            path = session_folder(_plain(name))
            conversation = self.store.conversation(chat, len(chat.turns), engine.is_embedded)
            model = engine.info.path if engine.info and not engine.is_embedded else None
            notes = to_notes(conversation, model)
            _refuse_another(path, notes)
            events = engine.save_session(request.session_hash, conversation, path, notes)
            saved = render.notice(f"Saved as {path.name}.", "info")
            yield from self.page.follow(events, saved)
        except IceCacheError as error:
            message = render.notice(sentence(error))
        yield self.show(f"{CHAT}:{name}") | ({"notice": message} if message else {})

    def open(self, chosen: str | None) -> Iterator[Updates]:
        """Load the model of a saved chat and go on in it."""
        kind, _, name = (chosen or "").partition(":")
        if kind != CHAT:
            text = "Texts of the library need no opening: chats about them find them there."
            yield {"notice": render.notice(text if kind else "Choose a saved chat first.", "info")}
            return
        yield {"notice": render.notice("Opening …", "info")}
        try:
            session = describe(session_folder(name))
            conversation, model = from_notes(session.notes, name)
            self.engine.open_session(session, model or embedded.model_path())
        except (IceCacheError, MemoryError) as error:
            yield {"notice": render.notice(sentence(error))}
            return
        yield {**self.page.open(self._chat(conversation).id), **self.show(chosen)}

    def _chat(self, conversation: Conversation) -> Chat:
        """Find the chat of this page that a conversation was saved from, or make one."""
        documents = [self.store.add_document(document) for document in conversation.documents]
        turns = [tuple(turn) for turn in conversation.turns]
        for chat in self.store.chats():
            said = [(turn.question, turn.answer.strip()) for turn in chat.turns]
            if (chat.documents, said, chat.system.strip()) == (
                documents, turns, conversation.system
            ):  # fmt: skip
                return chat
        chat = self.store.new()
        chat.documents, chat.system = documents, conversation.system
        chat.turns = [Turn(question, answer) for question, answer in turns]
        self.store.save(chat)
        return chat

    # -- deleting --------------------------------------------------------------------------------

    def ask_delete(self, chosen: str | None) -> Updates:
        """Ask whether that is meant."""
        if not chosen:
            return {"notice": render.notice("Choose what to delete first.", "info")}
        name, is_text = self._title(chosen), chosen.startswith(f"{TEXT}:")
        return {
            "saved_question": render.delete_question(name, is_text),
            "saved_sure": gr.update(visible=True),
        }

    def _title(self, chosen: str) -> str:
        labels = {value: label for label, value in [*self._sessions()[0], *self._texts()[0]]}
        return labels.get(chosen, chosen.partition(":")[2])

    def keep(self) -> Updates:
        """Delete nothing."""
        return {"saved_sure": gr.update(visible=False)}

    def delete(self, chosen: str | None) -> Updates:
        """Delete a saved chat, or a text of the library."""
        kind, _, name = (chosen or "").partition(":")
        message = ""
        try:
            if kind == CHAT:
                remove_session(session_folder(_plain(name)))
            elif not self.engine.library.remove(name):
                message = "Another program uses this text; try again later."
        except SessionError as error:
            message = str(error)
        return {**self.show(), **self.keep(), "notice": render.notice(message)}


def _refuse_another(path: Path, notes: dict) -> None:
    """Refuse to replace a session by a chat that it does not look like.

    Raises
    ------
    SessionError
    """
    if path.name not in {found.name for found in all_sessions()}:
        return
    stored = describe(path).notes
    begins = [part.get("turns", [])[:1] for part in (stored, notes)]
    if stored.get("documents") != notes["documents"] or (begins[0] and begins[0] != begins[1]):
        raise SessionError(f"{path.name} holds another chat: choose another name, or delete it.")


def _plain(name: str) -> str:
    """Refuse what leads out of the user's folder: `session_folder` would take a path.

    Raises
    ------
    SessionError
    """
    if "/" in name or "\\" in name:
        raise SessionError(f"{name!r} is no name: use letters, digits, dots and dashes.")
    return name.strip()
