"""Parts that the drills share: texts before they are filled, numbers, wordings."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from icecache_local.evaluation.tasks import niah
from icecache_local.evaluation.tasks.words import distinct, letters


@dataclass
class Text:
    """A text to learn from, before it is filled up.

    Attributes
    ----------
    task : str
        As the log names it.
    front : str
    needles : list of str
        Hidden in the filling, in this order.
    turns : list of (str, list of str)
        What asks at the end, and the answer in parts; each part counts as one answer.
    filling : {"prose", "noise", "none"}
    separator : str
        Between the parts of the filling.
    """

    task: str
    front: str = ""
    needles: list[str] = field(default_factory=list)
    turns: list[tuple[str, list[str]]] = field(default_factory=list)
    filling: str = "prose"
    separator: str = " "


def digits(rng: Random, n: int, length: int, first: str = "0123456789") -> list[str]:
    """Draw different numbers; half of the time they share pieces.

    A model that looks for the digits so far, without the name in front of them, must fail.
    """
    if rng.random() < 0.5:
        return distinct(rng, lambda r: r.choice(first) + letters(r, length - 1, "0123456789"), n)
    pool = [letters(rng, rng.randint(2, 3), "0123456789") for _ in range(n + 2)]

    def draw(r: Random) -> str:
        text = r.choice(first)
        while len(text) < length:
            text += r.choice(pool) if r.random() < 0.8 else r.choice("0123456789")
        return text[:length]

    return distinct(rng, draw, n)


def how_many(rng: Random, size: int, each: int, most: int) -> int:
    """Draw how many facts of `each` tokens: few more often than many, half of the text at most."""
    return min(most, max(1, int(rng.random() ** 2 * size / 2 / each) + 1))


def filling(rng: Random) -> tuple[str, str]:
    """Draw a `Text.filling`, and the separator that goes with it."""
    return rng.choices(
        [("prose", " "), ("noise", "\n"), ("none", "\n")], weights=[0.5, 0.15, 0.35]
    )[0]


class Wording:
    """How facts with keys are told and asked for: RULER's way, or short ones that come easier.

    Parameters
    ----------
    rng : random.Random
    one : bool
        Each question asks for a single value.
    kind : str
        What the values are: "number" or "uuid".
    """

    def __init__(self, rng: Random, one: bool, kind: str = "number") -> None:
        self.kind = kind
        before, question, prefix = niah.ONE if one else niah.SEVERAL
        self.short = rng.random() < 0.4
        self._asked = "\n{query} is:" if self.short else question + prefix
        self.front = "" if self.short and rng.random() < 0.5 else before.format(kind=kind)
        self._fact = "{key} is: {value}." if self.short and rng.random() < 0.5 else niah.NEEDLE
        self.fact_tokens = 18 if self._fact is not niah.NEEDLE else 30

    def fact(self, key: str, value: str) -> str:
        """Tell a fact."""
        return self._fact.format(kind=self.kind, key=key, value=value)

    def ask(self, query: str) -> str:
        """Ask for what belongs to a key, or to several."""
        return self._asked.format(kind=self.kind, query=query)
