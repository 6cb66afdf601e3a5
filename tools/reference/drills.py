"""Texts to learn from: facts and questions in the wordings of the evaluation's tasks.

Every drill is asked for about `size` tokens and returns the text without its filling: what stands
in front, what is hidden, and questions with their answers. RULER's wordings (arXiv 2404.06654)
are those of `icecache_local.evaluation.tasks`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from string import ascii_uppercase

from icecache_local import embedded
from icecache_local.evaluation.tasks import (
    common_words,
    frequent_words,
    niah,
    passkey,
    variable_tracking,
)
from icecache_local.evaluation.tasks.words import distinct, letters, uuid, vocabulary, word_pair

NAMES = embedded.names()


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


def _count(rng: Random, size: int, each: int, most: int) -> int:
    """Draw how many facts of `each` tokens: few more often than many, half of the text at most."""
    return min(most, max(1, int(rng.random() ** 2 * size / 2 / each) + 1))


def codes(rng: Random, size: int) -> Text:
    """Secret codes, as the demo words them, or shorter: the easy form comes first."""
    n = _count(rng, size, 14, 64)
    lasts = rng.sample(NAMES["last"], n)
    names = [f"{a} {b}" for a, b in zip(rng.sample(NAMES["first"], n), lasts, strict=True)]
    if rng.random() < 0.3:
        names = rng.sample(NAMES["first"], n)
    numbers = digits(rng, n, 6)
    form = rng.random()
    if form < 0.05:
        needles = [f"{name}{code}." for name, code in zip(names, numbers, strict=True)]
    elif form < 0.1:
        needles = [f"{name} is {code}." for name, code in zip(names, numbers, strict=True)]
    else:
        needles = [embedded.statement(*fact) for fact in zip(names, numbers, strict=True)]
    turns = []
    for _ in range(max(2, min(12, size // 48))):
        i = rng.randrange(n)
        ask = embedded.ask(embedded.question(names[i]))
        if form < 0.1:
            ask = f" {names[i]}" + (" is" if form >= 0.05 else "")
        turns.append((ask, [f"{'' if form < 0.05 else ' '}{numbers[i]}."]))
    order = list(range(n))
    rng.shuffle(order)
    return Text("codes", "", [needles[i] for i in order], turns)


def _filling(rng: Random) -> tuple[str, str]:
    return rng.choices(
        [("prose", " "), ("noise", "\n"), ("none", "\n")], weights=[0.6, 0.15, 0.25]
    )[0]


def needle(rng: Random, size: int) -> Text:
    """RULER's single needles and multiple keys: numbers or UUIDs of word pairs or UUIDs."""
    kind = "uuid" if size >= 512 and rng.random() < 0.15 else "number"
    keyed = uuid if kind == "uuid" and rng.random() < 0.3 else word_pair
    filling, separator = _filling(rng)
    each = 70 if keyed is uuid else 50 if kind == "uuid" else 30
    n = _count(rng, size, each, 400)
    if filling == "none":
        n = max(n, int(size * 0.4 / each))
    keys = distinct(rng, keyed, n)
    values = digits(rng, n, 7, "123456789") if kind == "number" else distinct(rng, uuid, n)
    needles = [
        niah.NEEDLE.format(kind=kind, key=k, value=v) for k, v in zip(keys, values, strict=True)
    ]
    before, question, prefix = niah.ONE
    short = rng.random() < 0.25
    turns = []
    for _ in range(max(1, min(8, size // (40 if short else 130)))):
        i = rng.randrange(n)
        ask = question + prefix if not short else "\n{query} is:"
        turns.append((ask.format(kind=kind, query=keys[i]), [f" {values[i]}."]))
    front = before.format(kind=kind) if not short or rng.random() < 0.5 else ""
    order = list(range(n))
    rng.shuffle(order)
    return Text("needle", front, [needles[i] for i in order], turns, filling, separator)


def values(rng: Random, size: int) -> Text:
    """Several numbers of one key; the answer numbers them in the order of the text."""
    filling, separator = _filling(rng)
    per_key = rng.choice([2, 3, 4, 4, 4])
    n_keys = 1 if size < 256 or rng.random() < 0.4 else _count(rng, size, 30 * per_key, 4)
    keys = distinct(rng, word_pair, n_keys)
    numbers = digits(rng, n_keys * per_key, 7, "123456789")
    facts = [(keys[i % n_keys], number) for i, number in enumerate(numbers)]
    rng.shuffle(facts)
    needles = [niah.NEEDLE.format(kind="number", key=k, value=v) for k, v in facts]
    before, question, prefix = niah.SEVERAL
    turns = []
    for key in rng.sample(keys, min(n_keys, 2)):
        own = [value for k, value in facts if k == key]
        answer = [f" {i}. {value}" for i, value in enumerate(own, 1)]
        turns.append(((question + prefix).format(kind="number", query=key), answer))
    front = before.format(kind="number")
    return Text("values", front, needles, turns, filling, separator)


def queries(rng: Random, size: int) -> Text:
    """Numbers of several keys; the answer names each key in front of its number."""
    filling, separator = _filling(rng)
    n = max(2, _count(rng, size, 40, 12))
    keys = distinct(rng, word_pair, n)
    numbers = digits(rng, n, 7, "123456789")
    needles = [
        niah.NEEDLE.format(kind="number", key=k, value=v)
        for k, v in zip(keys, numbers, strict=True)
    ]
    before, question, prefix = niah.SEVERAL
    turns = []
    for _ in range(1 if size < 512 else 2):
        asked = rng.sample(range(n), min(n, rng.choice([2, 3, 4, 4])))
        query = ", ".join(keys[i] for i in asked[:-1]) + f", and {keys[asked[-1]]}"
        answer = [f" {keys[i]}: {numbers[i]}{',' if i != asked[-1] else '.'}" for i in asked]
        turns.append(((question + prefix).format(kind="number", query=query), answer))
    order = list(range(n))
    rng.shuffle(order)
    front = before.format(kind="number")
    return Text("queries", front, [needles[i] for i in order], turns, filling, separator)


def variables(rng: Random, size: int) -> Text:
    """Chains of assignments; easy ones have short names, few hops, or answers that restate."""
    name = rng.choice([1, 2, 3, 5, 5, 5])
    hops = rng.choice([1, 1, 2, 2, 2, 3, 4])
    n_chains = max(1, min(_count(rng, size, 16 * (hops + 1), 8), 26 // (hops + 1)))
    names = distinct(rng, lambda r: letters(r, name, ascii_uppercase), n_chains * (hops + 1))
    starts = digits(rng, n_chains, 5, "123456789")
    chains = [names[i * (hops + 1) : (i + 1) * (hops + 1)] for i in range(n_chains)]
    lines = []
    for chain, value in zip(chains, starts, strict=True):
        pairs = zip(chain, chain[1:], strict=False)
        lines.append([f"VAR {chain[0]} = {value}", *(f"VAR {b} = VAR {a}" for a, b in pairs)])
    order = [i for i, own in enumerate(lines) for _ in own]
    rng.shuffle(order)
    rows = [iter(own) for own in lines]
    needles = [next(rows[i]) for i in order]
    front = variable_tracking.BEFORE
    turns = []
    for i in rng.sample(range(n_chains), min(n_chains, max(1, size // 200))):
        asked = variable_tracking.QUESTION + variable_tracking.PREFIX
        parts = [f" {v}" for v in chains[i]]
        turns.append((asked.format(n=len(chains[i]), value=starts[i]), parts))
    if rng.random() < 0.25:  # hop by hop
        front = ""
        i = rng.randrange(n_chains)
        turns = [("\n", [f"{starts[i]}"]), *((" =", [f" VAR {v}"]) for v in chains[i])]
    filling = rng.choice(["noise", "noise", "noise", "prose", "none"])
    if size >= 512 and rng.random() < 0.5 and n_chains == 1:
        text = variables_example(rng, hops)
        front = text + front
    return Text("variables", front, needles, turns, filling, "\n")


def variables_example(rng: Random, hops: int) -> str:
    """RULER's worked example, of variables with three letters."""
    names, value, lines = variable_tracking.chain(rng, hops, 3)
    noise = [niah.Noise().parts(rng, 19)[0]] * 5
    for line, place in zip(reversed(lines), sorted(rng.choices(range(6), k=len(lines)))[::-1],
                           strict=True):
        noise.insert(place, line)
    asked = variable_tracking.QUESTION + variable_tracking.PREFIX
    return (
        variable_tracking.BEFORE + "\n".join(noise)
        + asked.format(n=len(names), value=value) + f" {' '.join(names)}\n\n\n"
    )


def common(rng: Random, size: int) -> Text:
    """A numbered list in which some words come more often; below ten in short texts."""
    pool = vocabulary("noun", "adjective", "verb")
    n_entries = max(12, (size - 75) // 9)
    n_common = 10 if n_entries > 100 else max(1, n_entries // 12)
    often = max(3, min(30, int(n_entries * rng.uniform(0.4, 0.75) / n_common)))
    seldom = 3 if often > 12 else 1
    rest = max(0, n_entries - n_common * often)
    words = rng.sample(pool, n_common + rest // seldom + 1)
    entries = words[:n_common] * often
    entries += [words[n_common + i // seldom] for i in range(rest)]
    rng.shuffle(entries)
    seen: dict[str, int] = {}
    for word in entries:
        seen[word] = seen.get(word, 0) + 1
    best = sorted(seen, key=seen.__getitem__, reverse=True)[:n_common]
    text = common_words.BEFORE + common_words.numbered(entries)
    asked = common_words.QUESTION + common_words.PREFIX
    if n_common < 10:
        asked = asked.replace("10", str(n_common))
    # The first word is a free choice: any order of the answer is right, this one is learnable.
    order = [word for word in dict.fromkeys(entries) if word in set(best)]
    answer = [f" {i}. {word}" for i, word in enumerate(order, 1)]
    return Text("common", text, [], [(asked, answer)], "none")


def frequent(rng: Random, size: int) -> Text:
    """Coded words whose frequency falls with the square of their rank."""
    n = max(12, (size - 90) // 3)
    words = ["...", *distinct(rng, lambda r: letters(r, frequent_words.WORD_LENGTH),
                              max(8, size // frequent_words.TOKENS_PER_WORD) - 1)]
    counts = frequent_words.frequencies(n, len(words))
    text = [word for word, k in zip(words, counts, strict=True) for _ in range(k)]
    rng.shuffle(text)
    front = frequent_words.BEFORE + " ".join(text)
    answer = [f" {word}" for word in words[1:4]]
    return Text("frequent", front, [], [(frequent_words.QUESTION + frequent_words.PREFIX, answer)],
                "none")


def pass_key(rng: Random, size: int) -> Text:
    """A number of up to five digits in noise."""
    key = str(rng.randint(1, 50000))
    turn = (passkey.QUESTION + passkey.PREFIX, [f" {key}."])
    needles = [passkey.NEEDLE.format(key=key)]
    return Text("passkey", passkey.BEFORE, needles, [turn], "noise", "\n")


def prose(rng: Random, size: int) -> Text:
    """Nothing but a real text."""
    return Text("prose")


DRILLS: dict[str, Callable[[Random, int], Text]] = {
    "codes": codes,
    "needle": needle,
    "values": values,
    "queries": queries,
    "variables": variables,
    "common": common,
    "frequent": frequent,
    "passkey": pass_key,
    "prose": prose,
}
