"""Texts to learn from: facts and questions in the wordings of the evaluation's tasks.

Every drill is asked for about `size` tokens and returns the text without its filling: what stands
in front, what is hidden, and questions with their answers. RULER's wordings (arXiv 2404.06654)
are those of `icecache_local.evaluation.tasks`.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from string import ascii_uppercase

from icecache_local import embedded
from icecache_local.evaluation.tasks import (
    common_words,
    frequent_words,
    passkey,
    variable_tracking,
)
from icecache_local.evaluation.tasks.haystack import NOISE, hide
from icecache_local.evaluation.tasks.words import distinct, letters, uuid, vocabulary, word_pair

from .wordings import Text, Wording, digits, filling, how_many

NAMES = embedded.names()


def codes(rng: Random, size: int) -> Text:
    """Secret codes, as the demo words them, or shorter: the easy form comes first."""
    n = how_many(rng, size, 14, 64)
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


def needle(rng: Random, size: int) -> Text:
    """RULER's single needles and multiple keys: numbers or UUIDs of word pairs or UUIDs."""
    kind = "uuid" if size >= 512 and rng.random() < 0.4 else "number"
    keyed = uuid if kind == "uuid" and rng.random() < 0.3 else word_pair
    stuff, separator = filling(rng)
    wording = Wording(rng, one=True, kind=kind)
    each = wording.fact_tokens + (20 if kind == "uuid" else 0) + (20 if keyed is uuid else 0)
    n = how_many(rng, size, each, 400)
    if stuff == "none":
        n = max(n, int(size * 0.4 / each))
    keys = distinct(rng, keyed, n)
    numbers = digits(rng, n, 7, "123456789") if kind == "number" else distinct(rng, uuid, n)
    needles = [wording.fact(*fact) for fact in zip(keys, numbers, strict=True)]
    turns = []
    for _ in range(max(1, min(max(10, size // 512), size // (40 if wording.short else 130)))):
        i = rng.randrange(n)
        turns.append((wording.ask(keys[i]), [f" {numbers[i]}."]))
    rng.shuffle(needles)
    return Text("needle", wording.front, needles, turns, stuff, separator)


def values(rng: Random, size: int) -> Text:
    """Several numbers of one key; the answer numbers them in the order of the text."""
    stuff, separator = filling(rng)
    wording = Wording(rng, one=False)
    per_key = rng.choice([2, 3, 4, 4, 4])
    n_keys = how_many(rng, size, wording.fact_tokens * per_key, 4)
    keys = distinct(rng, word_pair, n_keys)
    numbers = digits(rng, n_keys * per_key, 7, "123456789")
    facts = [(keys[i % n_keys], number) for i, number in enumerate(numbers)]
    rng.shuffle(facts)
    turns = []
    for key in rng.sample(keys, min(n_keys, 1 + size // 256)):
        own = [value for k, value in facts if k == key]
        answer = [f" {i}. {value}" for i, value in enumerate(own, 1)]
        turns.append((wording.ask(key), answer))
    needles = [wording.fact(*fact) for fact in facts]
    return Text("values", wording.front, needles, turns, stuff, separator)


def queries(rng: Random, size: int) -> Text:
    """Numbers of several keys; the answer names each key in front of its number."""
    stuff, separator = filling(rng)
    wording = Wording(rng, one=False)
    n = max(2, how_many(rng, size, wording.fact_tokens + 10, 12))
    keys = distinct(rng, word_pair, n)
    numbers = digits(rng, n, 7, "123456789")
    needles = [wording.fact(*fact) for fact in zip(keys, numbers, strict=True)]
    turns = []
    for _ in range(1 if size < 512 else max(2, size // 2048)):
        asked = rng.sample(range(n), min(n, rng.choice([2, 3, 4, 4])))
        query = ", ".join(keys[i] for i in asked[:-1]) + f", and {keys[asked[-1]]}"
        answer = [f" {keys[i]}: {numbers[i]}{',' if i != asked[-1] else '.'}" for i in asked]
        turns.append((wording.ask(query), answer))
    rng.shuffle(needles)
    return Text("queries", wording.front, needles, turns, stuff, separator)


def variables(rng: Random, size: int) -> Text:
    """Chains of assignments; easy ones have short names, few hops, or answers that restate."""
    name = rng.choice([1, 2, 3, 5, 5, 5])
    hops = rng.choice([0, 0, 1, 1, 2, 2, 2, 3, 4])
    n_chains = max(1, min(how_many(rng, size, 16 * (hops + 1), 8), 26 // (hops + 1)))
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
    short = rng.random() < 0.4
    for i in rng.sample(range(n_chains), min(n_chains, max(1, size // (60 if short else 150)))):
        asked = variable_tracking.QUESTION + variable_tracking.PREFIX
        if short:
            asked = "\n{value}:"
        parts = [f" {v}" for v in chains[i]]
        turns.append((asked.format(n=len(chains[i]), value=starts[i]), parts))
    if rng.random() < 0.2:  # hop by hop
        front = ""
        i = rng.randrange(n_chains)
        turns = [("\n", [f"{starts[i]}"]), *((" =", [f" VAR {v}"]) for v in chains[i])]
    filling = rng.choice(["noise", "noise", "noise", "prose", "none"])
    if size >= 512 and rng.random() < 0.5 and n_chains == 1:
        text = variables_example(rng, hops)
        front = text + front
    return Text("variables", front, needles, turns, filling, "\n")


def reverse(rng: Random, size: int) -> Text:
    """Assign numbers or variables, and ask for what they are assigned to: one hop backwards."""
    n = rng.randint(2, max(3, min(12, size // 24)))
    length = rng.choice([1, 2, 3, 5, 5])
    names = distinct(rng, lambda r: letters(r, length, ascii_uppercase), 2 * n)
    names, sources = names[:n], names[n:]
    if numbers := rng.random() < 0.5:
        sources = digits(rng, n, rng.choice([3, 5, 5]), "123456789")
    lines = [
        f"VAR {a} = {'' if numbers else 'VAR '}{b}" for a, b in zip(names, sources, strict=True)
    ]
    chosen = rng.choices(range(n), k=n)
    turns = [(f"\n{sources[i]}:", [f" {names[i]}"]) for i in chosen]
    if not numbers and rng.random() < 0.5:
        turns = [(f"\n {sources[i]}", [f" {names[i]}"]) for i in chosen]
    rng.shuffle(lines)
    return Text("reverse", "", lines, turns, rng.choice(["noise", "none", "none"]), "\n")


def count(rng: Random, size: int) -> Text:
    """Put behind each key how often it has come: what `values` needs to know."""
    wording = Wording(rng, one=False)
    n = max(4, size // (wording.fact_tokens + 4))
    keys = distinct(rng, word_pair, rng.randint(1, n // 2))
    facts = [key for key in keys for _ in range(4)]
    rng.shuffle(facts)
    turns: list[tuple[str, list[str]]] = []
    for i, key in enumerate(facts[:n]):
        before, after = wording.fact(key, "{}").split("{}")
        turns += [(before, [str(facts[: i + 1].count(key))]), (f"{after}\n", [])]
    return Text("count", wording.front, [], turns, "none")


def repeat(rng: Random, size: int) -> Text:
    """Write words and made-up ones, and again from one of them on: copying, the first skill."""
    made: list[Callable[[Random], str]] = [
        word_pair,
        lambda r: letters(r, 5, ascii_uppercase),
        lambda r: letters(r, frequent_words.WORD_LENGTH),
        lambda r: r.choice(vocabulary("noun", "adjective", "verb")),
    ]
    draw = rng.choice(made)
    units = distinct(rng, draw, rng.randint(max(4, size // 32), size // 12))
    link = rng.choice([" ", "\n", ", ", " VAR "])
    start = rng.randrange(len(units) - 2)
    stop = rng.randint((start + 2 + len(units)) // 2, len(units))
    copies = [f"{link}{unit}" for unit in units[start + 1 : stop]]
    return Text("repeat", link.join(["", *units]), [], [(f"\n {units[start]}", copies)], "none")


def variables_example(rng: Random, hops: int) -> str:
    """RULER's worked example, of variables with three letters."""
    names, value, lines = variable_tracking.chain(rng, hops, 3)
    places = sorted(rng.random() for _ in lines)
    noise = hide([NOISE] * 5, list(zip(places, lines, strict=True)), "\n")
    asked = (variable_tracking.QUESTION + variable_tracking.PREFIX).format(
        n=len(names), value=value
    )
    return f"{variable_tracking.BEFORE}{noise}{asked} {' '.join(names)}\n\n\n"


def common(rng: Random, size: int) -> Text:
    """List numbered words, some of which come more often: ten, or fewer in short texts."""
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
    n_other = max(8, size // frequent_words.TOKENS_PER_WORD) - 1
    words = ["...", *distinct(rng, lambda r: letters(r, frequent_words.WORD_LENGTH), n_other)]
    counts = frequent_words.frequencies(n, len(words))
    text = [word for word, k in zip(words, counts, strict=True) for _ in range(k)]
    rng.shuffle(text)
    front = frequent_words.BEFORE + " ".join(text)
    answer = [f" {word}" for word in words[1:4]]
    asked = frequent_words.QUESTION + frequent_words.PREFIX
    return Text("frequent", front, [], [(asked, answer)], "none")


def pass_key(rng: Random, size: int) -> Text:
    """Hide a number of up to five digits in noise."""
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
    "count": count,
    "repeat": repeat,
    "reverse": reverse,
    "common": common,
    "frequent": frequent,
    "passkey": pass_key,
    "prose": prose,
}
