"""A library finds the longest common beginning, and keeps what is worth most."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_session import CONFIG, FINGERPRINT, SETTINGS, RandomSequence

from icecache_local.config import PAGE, CacheConfig
from icecache_local.sessions.chain import page_chain
from icecache_local.sessions.library import LEAST, Entry, Library

ROOM = 1 << 40  # bytes


def sequence_of(seed: int, n_tokens: int) -> RandomSequence:
    """A random sequence; the same seed begins alike."""
    sequence = RandomSequence(np.random.default_rng(seed), n_tokens)
    sequence.tokens = np.random.default_rng(seed).integers(0, 1000, n_tokens, np.int32)
    return sequence


def n_common(library: Library, tokens: np.ndarray) -> int:
    """Tokens that the library has of `tokens`."""
    found = library.find(FINGERPRINT, SETTINGS, tokens)
    if found is None:
        return 0
    found.close()
    return found.n_common


@pytest.mark.parametrize("n", [700, LEAST, LEAST + 5, 1000])
def test_finds_the_common_beginning(tmp_path, n) -> None:
    library, sequence = Library(tmp_path, ROOM), sequence_of(1, 700)
    assert sequence.keep(library)
    tokens = np.random.default_rng(1).integers(0, 1000, 1000, np.int32)[:n]
    assert n_common(library, tokens) == min(n, 700)
    assert n_common(library, np.append(tokens, 5)) == min(n, 700)
    changed = tokens.copy()
    changed[LEAST // 2] += 1
    assert n_common(library, changed) == 0
    assert n_common(library, tokens[1:]) == 0


def test_takes_the_longest_of_several(tmp_path) -> None:
    library = Library(tmp_path, ROOM)
    whole = sequence_of(1, 1200)
    for n in (300, 900, 500):
        part = sequence_of(1, n)
        part.tokens = whole.tokens[:n]
        part.keep(library)
    assert len(library.entries()) == 2  # 500 were there as a part of 900
    assert n_common(library, whole.tokens) == 900
    assert n_common(library, np.append(whole.tokens[:400], [1, 2, 3])) == 400


def test_another_model_or_layout_shares_nothing(tmp_path) -> None:
    library, sequence = Library(tmp_path, ROOM), sequence_of(1, 700)
    sequence.keep(library)
    for fingerprint, kind in (
        (FINGERPRINT | {"model": "1"}, SETTINGS),
        (FINGERPRINT | {"rope": [1]}, SETTINGS),
        (FINGERPRINT, replace(SETTINGS, n_batch=128)),
        (FINGERPRINT, replace(SETTINGS, cache=CacheConfig(budget=32, sink=4, window=16))),
    ):
        assert library.find(fingerprint, kind, sequence.tokens) is None
    other = replace(SETTINGS, n_ctx=99, cache=replace(CONFIG, budget=40, candidate_pages=3))
    found = library.find(FINGERPRINT | {"name": "copy"}, other, sequence.tokens)
    assert found.n_common == 700
    found.close()


@settings(max_examples=25, deadline=None)
@given(a=st.lists(st.integers(0, 2), max_size=100), b=st.lists(st.integers(0, 2), max_size=100))
def test_the_chain_tells_common_pages(a, b) -> None:
    first, second = (page_chain(np.array(tokens, np.int32)) for tokens in (a, b))
    assert len(first) == len(a) // PAGE
    for i, (x, y) in enumerate(zip(first, second, strict=False)):
        assert (x == y) == (a[: PAGE * (i + 1)] == b[: PAGE * (i + 1)])


def test_the_least_valuable_goes_first(tmp_path) -> None:
    library = Library(tmp_path, ROOM)
    kept = [sequence_of(seed, 600) for seed in range(4)]
    for sequence, read_s in zip(kept, (4.0, 1.0, 2.0, 1.5), strict=True):
        sequence.keep(library, read_s)
    sizes = [entry.n_bytes for entry in library.entries()]
    for _ in range(3):
        n_common(library, kept[1].tokens)  # used thrice more: 4 x 1.0 s
    small = Library(tmp_path, sum(sizes) - 1)
    sequence_of(9, 600).keep(small, 3.0)  # evicts 2: 3 and 2
    assert [n_common(small, s.tokens) > 0 for s in kept] == [True, True, False, False]
    assert sum(entry.n_bytes for entry in small.entries()) <= small.max_bytes


def test_what_is_open_is_never_evicted(tmp_path) -> None:
    library, kept = Library(tmp_path, ROOM), sequence_of(1, 600)
    kept.keep(library, 0.0)
    found = library.find(FINGERPRINT, SETTINGS, kept.tokens)
    small = Library(tmp_path, int(1.5 * library.entries()[0].n_bytes))
    for seed in (2, 3):
        sequence_of(seed, 600).keep(small, 100.0)
    assert n_common(library, kept.tokens) == 600
    found.close()
    sequence_of(4, 600).keep(small, 100.0)
    assert n_common(library, kept.tokens) == 0
    assert len(small.entries()) == 1


def test_too_short_or_too_large_is_not_kept(tmp_path) -> None:
    assert not sequence_of(1, LEAST - 1).keep(Library(tmp_path, ROOM))
    assert not sequence_of(1, 600).keep(Library(tmp_path, 1000))
    assert Library(tmp_path, ROOM).entries() == []


def test_damaged_entries_are_passed_over_and_go_first(tmp_path) -> None:
    library = Library(tmp_path, ROOM)
    kept = [sequence_of(seed, 600) for seed in range(2)]
    for sequence in kept:
        sequence.keep(library, 5.0)
    first = next(tmp_path.glob("*.card"))
    first.write_bytes(b"lost")
    (next(tmp_path.glob("*.card")).with_suffix("") / "header").write_bytes(b"damaged")
    assert sorted(n_common(library, s.tokens) for s in kept)[0] == 0
    lost = library.entries()[0]
    assert lost.path.name == first.stem and lost.value(1e9) == 0
    small = Library(tmp_path, lost.n_bytes * 2 + 100)
    sequence_of(3, 600).keep(small, 1.0)
    assert not lost.path.exists()


def test_value_is_time_saved_per_byte_and_age() -> None:
    entry = Entry(None, 1000, 1 << 20, 2, 0.0, 8.0, "")
    assert entry.value(7200) == 8.0 * 3 / (1 << 20) / 7200
    assert entry.value(10) == entry.value(3600)
