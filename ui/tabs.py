"""Which chat each tab shows: an answer to another one goes on behind it, unseen."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import gradio as gr

NOTHING = {"notice": gr.skip()}


class Tabs:
    """Makes functions that Gradio calls out of handlers, which return updates by name.

    Parameters
    ----------
    parts : dict of str to component
    """

    def __init__(self, parts: dict[str, Any]) -> None:
        self.parts = parts
        self._shown: dict[str, str] = {}

    def handler(self, method: Callable) -> Callable:
        """Let the updates of a method go to components by name.

        A parameter `key` is the chat that it is about. A generator updates a tab only while
        that chat is shown there. What answers at once is about the chat that the tab was last
        told to show, even if the browser has not got so far.
        """
        signature = inspect.signature(method)
        names = list(signature.parameters)
        own = [] if "request" in names else ["request"]
        about = [*own, *names].index("key") if "key" in names else None

        def apply(tab: str, updates: dict[str, Any]) -> dict[Any, Any]:
            if "chat_id" in updates:
                self._shown[tab] = updates["chat_id"]
            return {self.parts[name]: update for name, update in updates.items()}

        if inspect.isgeneratorfunction(method):

            @functools.wraps(method)
            def run(*args: Any) -> Iterator[dict[Any, Any]]:
                tab, key = args[0].session_hash, None if about is None else args[about]
                with closing(method(*args[len(own) :])) as all_updates:
                    for updates in all_updates:
                        shown = key is None or self._shown.get(tab, key) == key
                        # Nothing at all would not do: Gradio ends by repeating the last update.
                        yield apply(tab, updates if shown else NOTHING)

        else:

            @functools.wraps(method)
            def run(*args: Any) -> dict[Any, Any]:
                tab, given = args[0].session_hash, list(args)
                if about is not None:
                    given[about] = self._shown.get(tab, given[about])
                return apply(tab, method(*given[len(own) :]))

        if own:  # Gradio hands over what the signature asks for
            asked = [inspect.Parameter("request", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
            asked += signature.parameters.values()
            run.__signature__ = signature.replace(parameters=asked)
            run.__annotations__ = {**method.__annotations__, "request": gr.Request}
        return run

    def forget(self, request: gr.Request) -> None:
        """Drop what is known of a tab that was closed."""
        self._shown.pop(request.session_hash, None)
