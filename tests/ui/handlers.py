"""Calling the page's handlers as Gradio does."""

from __future__ import annotations


class Request:
    """What Gradio hands to a handler."""

    def __init__(self, session_hash: str = "tab") -> None:
        self.session_hash = session_hash


def run(events) -> dict:
    """All updates of a handler, the later ones over the earlier ones."""
    merged: dict = {}
    for updates in events:
        merged |= updates
    return merged
