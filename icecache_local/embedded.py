"""The model that ships with the package: where it lies, which names it knows, how to ask it.

A retrieval model of 4.6M parameters, see docs/reference-model.md. It finds statements of the form
"The secret code of Orson Jungle is 543121." in long English text, answers RULER's questions about
keys and variables, and knows nothing else.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

STOP = "."  # ends every answer


def model_path() -> Path:
    """Path of the model file."""
    return Path(str(files(__package__) / "data" / "retr-5m-f16.gguf"))


def names() -> dict[str, list[str]]:
    """Words for names, each one token: "first" stands alone or in front of a "last"."""
    return json.loads((files(__package__) / "data" / "names.json").read_text())


def statement(name: str, code: str) -> str:
    """Tell a fact the way the model learned it."""
    return f"The secret code of {name} is {code}."


def question(name: str) -> str:
    """Ask for a fact the way the model learned it."""
    return f"What is the secret code of {name}?"


def ask(question: str) -> str:
    """Return the text that puts a question after a document; the answer comes next."""
    return f" Q: {question} A:"
