"""Chats and their documents, kept in a folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from icecache_local.conversation import Conversation, Document
from icecache_local.errors import IceCacheError

from .passages import Look

FORMAT = "icecache-local chat 1"
NEW = "New chat"
TITLE = 48  # characters


class ChatFileError(IceCacheError, ValueError):
    """A file is no exported chat."""


@dataclass
class Turn:
    """A question, its answer, and what the answer looked at."""

    question: str
    answer: str = ""
    looks: list[Look] = field(default_factory=list)


@dataclass
class Sampling:
    """How answers are drawn; names and meaning as in llama.cpp."""

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    max_tokens: int = 1024
    seed: int = -1


@dataclass
class Chat:
    """One chat.

    Attributes
    ----------
    id : str
    documents : list of str
        Ids of the documents in front of it.
    turns : list of Turn
    system : str
        Instructions to the model.
    sampling : Sampling
    used : float
        When it was last changed, in seconds since the epoch.
    """

    id: str
    documents: list[str] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    system: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    used: float = 0.0

    @property
    def title(self) -> str:
        """First words of the first question."""
        if not self.turns:
            return NEW
        words = " ".join(self.turns[0].question.split())
        return words if len(words) <= TITLE else words[: TITLE - 1].rstrip() + "…"

    def messages(self) -> list[dict[str, str]]:
        """All turns as messages with role and content."""
        return [
            {"role": role, "content": content}
            for turn in self.turns
            for role, content in (("user", turn.question), ("assistant", turn.answer))
            if content
        ]


def _chat(fields: dict) -> Chat:
    """Make a chat from its JSON."""
    turns = [
        Turn(str(t["question"]), str(t["answer"]), [Look.from_dict(v) for v in t["looks"]])
        for t in fields["turns"]
    ]
    sampling = Sampling(**fields["sampling"])
    names = [str(name) for name in fields["documents"]]
    return Chat(fields["id"], names, turns, str(fields["system"]), sampling, fields["used"])


class ChatStore:
    """All chats and documents of a folder; safe to use from several threads.

    Parameters
    ----------
    folder : Path
        Is made if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        for name in ("chats", "documents"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self._chats: dict[str, Chat] = {}
        self._deleted: set[str] = set()
        self._documents: dict[str, Document] = {}
        for path in (folder / "chats").glob("*.json"):
            try:
                chat = _chat(json.loads(path.read_text()))
            except (ValueError, KeyError, TypeError):
                continue  # a file of another program or version is left alone
            self._chats[chat.id] = chat

    # -- chats ---------------------------------------------------------------------------------

    def chats(self) -> list[Chat]:
        """All chats, the last used first."""
        return sorted(list(self._chats.values()), key=lambda chat: -chat.used)

    def get(self, key: str | None) -> Chat:
        """Return a chat, or a new one if there is none with this id."""
        return self._chats.get(key or "") or self.new()

    def new(self, like: Chat | None = None) -> Chat:
        """Begin a chat; it talks about the same documents as the one it is made `like`."""
        for chat in list(self._chats.values()):
            if not chat.turns and (like is None or chat.documents == like.documents):
                return chat  # an empty one is at hand
        chat = Chat(os.urandom(8).hex())
        if like is not None:
            chat.documents = list(like.documents)
            chat.system, chat.sampling = like.system, Sampling(**asdict(like.sampling))
        self.save(chat)
        return chat

    def save(self, chat: Chat) -> None:
        """Keep a chat, unless it has been deleted."""
        chat.used = time.time()
        with self._lock:
            if self.is_deleted(chat):
                return
            self._chats[chat.id] = chat
            _write(self.folder / "chats" / f"{chat.id}.json", json.dumps(asdict(chat)))

    def delete(self, key: str) -> None:
        """Forget a chat."""
        with self._lock:
            self._deleted.add(key)
            self._chats.pop(key, None)
            (self.folder / "chats" / f"{key}.json").unlink(missing_ok=True)

    def is_deleted(self, chat: Chat) -> bool:
        """Whether a chat was deleted, perhaps while it was being answered."""
        return chat.id in self._deleted

    # -- documents -----------------------------------------------------------------------------

    def add_document(self, document: Document) -> str:
        """Keep a document; returns its id, which is the same for the same name and text."""
        content = json.dumps(asdict(document))
        key = hashlib.sha256(content.encode()).hexdigest()[:24]
        path = self.folder / "documents" / f"{key}.json"
        if not path.exists():
            _write(path, content)
        return key

    def document(self, key: str) -> Document:
        """Return a document by its id."""
        if key not in self._documents:
            path = self.folder / "documents" / f"{key}.json"
            self._documents[key] = Document(**json.loads(path.read_text()))
        return self._documents[key]

    def documents(self) -> list[str]:
        """Ids of all documents that a chat is about."""
        return list(dict.fromkeys(key for chat in self.chats() for key in chat.documents))

    def conversation(self, chat: Chat, n_turns: int, is_embedded: bool) -> Conversation:
        """Documents and the first `n_turns` turns of a chat, as the model reads them."""
        documents = [self.document(key) for key in chat.documents]
        conversation = Conversation(documents, is_embedded, chat.system)
        for turn in chat.turns[:n_turns]:
            conversation.add(turn.question, turn.answer)
        return conversation

    # -- export and import ---------------------------------------------------------------------

    def export(self, chat: Chat) -> str:
        """Chat and documents as JSON."""
        documents = {key: asdict(self.document(key)) for key in chat.documents}
        content = {"format": FORMAT, "chat": asdict(chat), "documents": documents}
        return json.dumps(content, indent=1, ensure_ascii=False)

    def import_chat(self, path: Path) -> Chat:
        """Take over an exported chat under a new id.

        Raises
        ------
        ChatFileError
        """
        try:
            content = json.loads(path.read_text())
            if content["format"] != FORMAT:
                raise ValueError
            chat = _chat(content["chat"])
            documents = [content["documents"][key] for key in chat.documents]
            documents = [Document(str(d["name"]), str(d["text"])) for d in documents]
        except (ValueError, KeyError, TypeError, OSError):
            raise ChatFileError(
                f"{path.name} is no chat of icecache-local; choose a file that Export made."
            ) from None
        ids = {
            old: self.add_document(document)
            for old, document in zip(chat.documents, documents, strict=True)
        }
        chat.id = os.urandom(8).hex()
        chat.documents = [ids[key] for key in chat.documents]
        for turn in chat.turns:
            turn.looks = [
                Look(ids[look.document], look.heat, look.passages)
                for look in turn.looks
                if look.document in ids
            ]
        self.save(chat)
        return chat


def file_name(chat: Chat) -> str:
    """Name for an exported chat."""
    return (re.sub(r"\W+", "-", chat.title).strip("-").lower() or "chat") + ".json"


def _write(path: Path, text: str) -> None:
    """Write a file as a whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)
