import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icecache_local.slots import SlotTable

N_CTX = 200
REST = 10**6  # a place of no token


@st.composite
def histories(draw):
    heads, slots = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    steps = draw(
        st.lists(
            st.tuples(st.sampled_from(["assign", "truncate", "clear"]), st.integers(0, 2**31)),
            max_size=12,
        )
    )
    return heads, slots, steps


@settings(deadline=None, max_examples=60)
@given(histories())
def test_no_token_twice_no_slot_shared_after_any_history(history):
    heads, n_slots, steps = history
    table = SlotTable(heads, n_slots, N_CTX)
    n_tokens = N_CTX
    for action, seed in steps:
        rng = np.random.default_rng(seed)
        if action == "truncate":
            n_tokens = int(rng.integers(n_slots, n_tokens + 1))
            table.truncate(n_tokens)
            assert table.token_in.max(initial=0) <= n_tokens
        elif action == "clear":
            table.clear()
            assert not table.slot_of.any()
        else:
            tokens = np.array([rng.permutation(n_tokens)[:n_slots] for _ in range(heads)], np.int32)
            places = (tokens * 7 + 3).astype(np.int32)
            before = table.token_in.copy()
            rest = np.where(rng.random(heads) < 0.5, REST, -1).astype(np.int32)
            n_misses = table.assign(tokens, places, rest if seed % 2 else None)
            _check_assignment(table, before, tokens, rest if seed % 2 else table.no_rest)
            assert n_misses == table.n_miss.sum()
        table.check_integrity()


def _check_assignment(table, before, tokens, rest):
    for g, wanted in enumerate(tokens):
        has_rest = int(rest[g] >= 0)
        wanted = wanted[: len(wanted) - has_rest]
        held = table.token_in[g]
        assert set(held[held > 0] - 1) == set(wanted)
        assert np.count_nonzero(held == 0) == has_rest
        missing = set(wanted) - set(before[g] - 1)
        assert table.n_miss[g] == len(missing) + has_rest
        slots = table.miss_slots[g, : len(missing)]
        assert set(table.token_in[g, slots] - 1) == missing
        assert np.array_equal(
            table.miss_places[g, : len(missing)], (table.token_in[g, slots] - 1) * 7 + 3
        )
        if has_rest:
            assert table.token_in[g, table.miss_slots[g, len(missing)]] == 0
            assert table.miss_places[g, len(missing)] == REST
        stayed = np.setdiff1d(np.arange(table.n_slots), table.miss_slots[g, : table.n_miss[g]])
        assert np.array_equal(table.token_in[g, stayed], before[g, stayed])


def test_assigning_the_same_tokens_again_uploads_nothing():
    table = SlotTable(2, 8, N_CTX)
    tokens = np.array([np.arange(8), np.arange(50, 58)], np.int32)
    assert table.assign(tokens, tokens) == 16
    assert table.assign(tokens[:, ::-1].copy(), tokens) == 0


def test_integrity_check_sees_a_shared_slot():
    table = SlotTable(1, 4, N_CTX)
    tokens = np.arange(4, dtype=np.int32)[None]
    table.assign(tokens, tokens)
    table.slot_of[0, 9] = 2
    with pytest.raises(AssertionError, match="not resident"):
        table.check_integrity()
    table.slot_of[0, 9] = 0
    table.token_in[0, 0] = table.token_in[0, 1]
    with pytest.raises(AssertionError, match="twice"):
        table.check_integrity()
