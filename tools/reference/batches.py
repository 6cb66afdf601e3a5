"""From drills to arrays: filled texts, tokens, which of them are answers, positions with gaps."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
from tokenizers import Tokenizer

from icecache_local.evaluation.tasks.haystack import NOISE, SENTENCE_END, Prose

from .drills import DRILLS
from .wordings import Text

# Pieces: text worth predicting; facts and questions, which are not; filling that is not, either.
FILL, QUIET, NOISE_FILL = -1, -2, -3
LONGEST = 40_000  # positions that gaps spread a sequence over
MANY_GAPS = 16


@dataclass(frozen=True)
class Batch:
    """Sequences of equal length; B of them, T tokens each.

    Attributes
    ----------
    tokens : ndarray
        (B, T) int64, padded with 0.
    positions : ndarray
        (B, T) int64, growing.
    answers : ndarray
        (B, T) int32: number of the answer that a token belongs to, else FILL, QUIET or NOISE_FILL.
    tasks : list of str
        By number of the answer.
    """

    tokens: np.ndarray
    positions: np.ndarray
    answers: np.ndarray
    tasks: list[str]


class Writer:
    """Makes batches.

    Parameters
    ----------
    tokenizer : Tokenizer
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._sentences = SENTENCE_END.split(Prose.of_python().text)
        encoded = tokenizer.encode_batch([f" {s}" for s in self._sentences])
        self._lengths = [len(e.ids) for e in encoded]
        self._noise = len(tokenizer.encode(f"{NOISE}\n").ids)

    def batch(self, rng: Random, mix: dict[str, float], n_sequences: int, size: int) -> Batch:
        """Draw sequences of at most `size` tokens.

        Parameters
        ----------
        rng : random.Random
        mix : dict of str to float
            Share of each drill.
        n_sequences, size : int

        Returns
        -------
        Batch
        """
        tokens = np.zeros((n_sequences, size), np.int64)
        answers = np.full((n_sequences, size), QUIET, np.int32)
        positions = np.empty((n_sequences, size), np.int64)
        tasks: list[str] = []
        names = rng.choices(list(mix), weights=list(mix.values()), k=n_sequences)
        for row, name in enumerate(names):
            ids, kinds, starts = self.sequence(rng, DRILLS[name](rng, size), size)
            tokens[row, : len(ids)] = ids
            own = kinds >= 0
            answers[row, : len(ids)] = np.where(own, kinds + len(tasks), kinds)
            tasks += [name] * (int(kinds.max(initial=-1)) + 1)
            positions[row] = gaps(rng, starts, size)
        return Batch(tokens, positions, answers, tasks)

    def sequence(
        self, rng: Random, text: Text, size: int
    ) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Fill a text up to `size` tokens, at most.

        Returns
        -------
        ids : ndarray
            (n,) token ids.
        kinds : ndarray
            (n,) as `Batch.answers`.
        starts : list of int
            Tokens at which a part of the text begins.
        """
        room = size
        if text.filling != "none":
            bare = "".join(piece for piece, _ in _pieces(rng, text, []))
            room -= len(self._tokenizer.encode(bare).ids)
        while True:
            filling = self._filling(rng, text, room)
            pieces = _pieces(rng, text, filling)
            encoded = self._tokenizer.encode("".join(piece for piece, _ in pieces))
            if len(encoded.ids) <= size or not filling:
                break
            room -= len(encoded.ids) - size
        ends = np.cumsum([len(piece) for piece, _ in pieces])
        of = np.searchsorted(ends, [start for start, _ in encoded.offsets], side="right")
        kinds = np.array([kind for _, kind in pieces])[of]
        # Answers stay in one piece.
        starts = np.flatnonzero((np.diff(of, prepend=0) > 0) & (kinds < 0)).tolist()
        return np.array(encoded.ids)[:size], kinds[:size], [s for s in starts if s < size]

    def _filling(self, rng: Random, text: Text, room: int) -> list[str]:
        """Sentences or lines of at most `room` tokens."""
        parts: list[str] = []
        if text.filling == "noise":
            return [NOISE] * max(0, room // self._noise)
        if text.filling == "prose":
            i = rng.randrange(len(self._sentences))
            while room > 0:
                sentence, n = self._sentences[i], self._lengths[i]
                if n > room:
                    words = sentence.split()
                    sentence = " ".join(words[: int(len(words) * room / n)])
                if sentence:
                    parts.append(sentence)
                room -= n
                i = (i + 1) % len(self._sentences)
        return parts


def _pieces(rng: Random, text: Text, filling: list[str]) -> list[tuple[str, int]]:
    """Pieces of a text and what they are; needles keep their order among the filling."""
    places = sorted(rng.randint(0, len(filling)) for _ in text.needles)
    # Noise is learned by heart at once: no need to predict it.
    kind = FILL if text.filling == "prose" else NOISE_FILL
    body: list[tuple[str, int]] = []
    done = 0
    for needle, place in zip(text.needles, places, strict=True):
        body += [(part, kind) for part in filling[done:place]]
        body.append((needle, QUIET))
        done = place
    body += [(part, kind) for part in filling[done:]]
    pieces = [(text.front, QUIET)] if text.front else []
    for i, (part, kind) in enumerate(body):
        pieces.append((part if i == 0 else text.separator + part, kind))
    n = 0
    for question, answer in text.turns:
        pieces.append((question, QUIET))
        for part in answer:
            pieces.append((part, n))
            n += 1
    return pieces


def gaps(rng: Random, starts: list[int], size: int) -> np.ndarray:
    """Positions that jump where a part of the text begins, as in a text of any length.

    Parameters
    ----------
    rng : random.Random
    starts : list of int
        Tokens that may be behind a jump.
    size : int

    Returns
    -------
    ndarray
        (size,) int64.
    """
    steps = np.ones(size, np.int64)
    steps[0] = 0
    if starts and rng.random() < 0.75:
        total = int(size * (LONGEST / size) ** rng.random()) - size
        chosen = rng.sample(starts, min(len(starts), rng.randint(1, MANY_GAPS)))
        shares = np.array([rng.expovariate(1.0) for _ in chosen])
        steps[chosen] += (total * shares / shares.sum()).astype(np.int64)
    return np.cumsum(steps)
