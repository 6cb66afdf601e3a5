"""DiskTier: pages that leave memory come back as they were, and nobody notices."""

import tempfile
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_layer_cache import CONFIG, N_CARRIERS, SHAPE, Sequence

from icecache_local import record_io
from icecache_local.config import PAGE, ModelShape
from icecache_local.disk_tier import DiskTier
from icecache_local.errors import DiskTierError
from icecache_local.host_pages import ABSENT, WRITTEN, HostPages

LIMITED = replace(CONFIG, ram_limit=1, unread=0)


def _tiered(n_heads: int, dims: tuple[int, int], n_pages: int, rng) -> tuple[HostPages, np.ndarray]:
    """Pages full of random bits, and a copy of them."""
    pages = HostPages(ModelShape(1, n_heads, n_heads, *dims), n_pages)
    DiskTier(pages, first_page=1)
    pages.n_pages[:] = n_pages
    pages.fill[:, :n_pages] = PAGE
    pages.kv[:, :n_pages] = rng.integers(0, 1 << 16, (n_heads, n_pages, pages.kv.shape[2]))
    return pages, pages.kv.copy()


def _places(pages) -> np.ndarray:
    """The first row of each page, and its second one again: pages are fetched once."""
    pages = np.asarray(pages)
    twice = np.concatenate([pages * PAGE, np.full_like(pages, -1)], axis=1)
    twice[pages.min(axis=1) >= 0, pages.shape[1] :] = (pages * PAGE + 1)[pages.min(axis=1) >= 0]
    return np.where(twice < 0, -1, twice).astype(np.int32)


def _block_bytes(pages: HostPages) -> int:
    return pages.per_block * pages.page_bytes


@pytest.mark.parametrize("dims", [(128, 128), (64, 64), (32, 32), (72, 64), (40, 0)])
def test_pages_of_any_size_come_back_bit_for_bit(dims, rng):
    pages, before = _tiered(2, dims, 37, rng)
    tier = pages.tier
    tier.trim(0)
    first_free = -(-1 // pages.per_block) * pages.per_block
    assert (pages.state[:, first_free:37] & ABSENT).all()
    assert tier.nbytes_held == 2 * first_free * pages.page_bytes
    assert not pages.kv[:, first_free:].any(), "the memory was not given back"
    tier.fetch(_places([[first_free, 36, -1], [30, -1, -1]]))
    for g, page in ((0, first_free), (0, 36), (1, 30)):
        assert np.array_equal(pages.kv[g, page], before[g, page])
    assert np.array_equal(tier.some(1, np.arange(37)), before[1, :37])
    tier.trim(None)
    tier.prefetch_all()
    tier.settle()
    assert np.array_equal(pages.kv[:, :37], before[:, :37])


def test_only_absent_pages_are_read(rng):
    pages, _ = _tiered(2, (64, 64), 40, rng)
    pages.tier.trim(0)
    wanted = _places([[3, 9, 20], [4, 5, -1]])
    pages.tier.trim(None)
    pages.tier.fetch(wanted)
    assert pages.tier.disk.read_bytes == 5 * pages.page_bytes
    pages.tier.fetch(wanted)
    assert pages.tier.disk.read_bytes == 5 * pages.page_bytes


def test_a_changed_page_is_written_again_and_an_unchanged_one_is_not(rng):
    pages, before = _tiered(1, (64, 64), 20, rng)
    tier = pages.tier
    tier.trim(0)
    assert tier.disk.written_bytes == 19 * pages.page_bytes
    tier.trim(None)
    tier.fetch(_places([[4, 7]]))
    pages.kv[0, 4] = 5
    pages.state[0, 4] |= WRITTEN
    tier.trim(0)
    assert tier.disk.written_bytes == 20 * pages.page_bytes
    assert (tier.some(0, np.array([4])) == 5).all()
    assert np.array_equal(tier.some(0, np.array([7])), before[:, 7])


@given(
    st.sampled_from([(64, 64), (32, 32), (72, 64)]),
    st.lists(st.tuples(st.integers(0, 2**31), st.integers(0, 40)), min_size=1, max_size=12),
)
@settings(deadline=None, max_examples=40)
def test_no_page_is_lost_and_the_share_holds(dims, steps):
    rng = np.random.default_rng(1)
    pages, content = _tiered(2, dims, 60, rng)
    tier = pages.tier
    for seed, n_blocks in steps:
        rng = np.random.default_rng(seed)
        share = n_blocks * _block_bytes(pages) * 2
        tier.trim(share)
        least = 2 * pages.per_block * pages.page_bytes  # page 0 never leaves
        assert tier.nbytes_held <= max(share, least)
        wanted = np.stack([rng.permutation(np.arange(1, 60))[:5] for _ in range(2)])
        tier.fetch(_places(wanted))
        heads = np.arange(2)[:, None]
        assert not (pages.state[heads, wanted] & ABSENT).any()
        assert np.array_equal(pages.kv[heads, wanted], content[heads, wanted])
        assert tier.nbytes_held <= max(share, least + 10 * _block_bytes(pages))
        pages.kv[heads, wanted] += 1
        pages.state[heads, wanted] |= WRITTEN
        content[heads, wanted] += 1
    for g in range(2):
        assert np.array_equal(tier.some(g, np.arange(60)), content[g, :60])


@pytest.mark.parametrize("by_attention, gone", [(True, [5, 6]), (False, [3, 5])])
def test_what_attention_uses_stays_or_what_was_used_last(by_attention, gone, rng):
    pages = HostPages(ModelShape(1, 1, 1, 64, 64), 8)
    tier = DiskTier(pages, first_page=3, by_attention=by_attention)
    pages.n_pages[:] = 8
    pages.fill[:, :8] = PAGE
    for used in ([3, 4, 6], [3, 4], [7, 6], [4]):
        tier.fetch(_places([used]))
    tier.importance[0, [3, 4, 6, 7]] = [3, 1, 0.5, 5]  # times 2, 3, 2 and 1 uses
    tier.trim(6 * pages.page_bytes)
    assert np.flatnonzero(pages.state[0] & ABSENT).tolist() == gone


STEPS = st.lists(
    st.tuples(st.sampled_from(["read", "later", "decode", "truncate", "trim"]), st.integers(1, 64)),
    min_size=1,
    max_size=5,
)


@settings(deadline=None, max_examples=10)
@given(STEPS, st.integers(0, 2**31))
def test_a_layer_on_the_disk_does_what_one_in_memory_does(steps, seed):
    ours, twin = Sequence(seed, LIMITED), Sequence(seed)
    tier = ours.cache.pages.tier
    least = ours.cache.first_leaf * SHAPE.n_kv_heads * ours.cache.pages.page_bytes
    tier.trim(least + 4 * _block_bytes(ours.cache.pages))
    for action, n in steps:
        for sequence in (ours, twin):
            sequence.cache.finish()
            if action == "read":
                sequence.append(n)
            elif action == "later":  # the index waits, the pages are read meanwhile
                sequence.append(n, finish=sequence is twin)
                tier.prefetch_wanted()
            elif action == "decode":
                for _ in range(n // 8 + 1):
                    sequence.decode()
            elif action == "truncate":
                sequence.truncate(max(N_CARRIERS + 1, len(sequence.k) - n * 5))
        tier.trim(least + (n % 9) * _block_bytes(ours.cache.pages))
        ours.cache.finish()
        a, b = ours.cache, twin.cache
        assert np.array_equal(a.slots.token_in, b.slots.token_in)
        assert np.array_equal(a.device.k, b.device.k) and np.array_equal(a.device.v, b.device.v)
        assert np.array_equal(a.pages.ids, b.pages.ids)
        assert np.array_equal(a.pages.fill, b.pages.fill)
        for g, used in enumerate(a.pages.n_pages):
            for page in np.flatnonzero(a.pages.fill[g, :used]):
                rows = slice(0, a.pages.fill[g, page] * SHAPE.head_dim_k)
                mine = a.pages.some(g, np.array([page]))[0, rows]
                assert np.array_equal(mine, b.pages.kv[g, page, rows])
    ours.check()


@settings(deadline=None, max_examples=10)
@given(STEPS, st.integers(0, 2**31), st.sampled_from([0.001, 0.5]))
def test_whatever_is_not_read_the_cells_hold_what_the_slots_say(steps, seed, unread):
    sequence = Sequence(seed, replace(LIMITED, unread=unread))
    tier = sequence.cache.pages.tier
    least = sequence.cache.first_leaf * SHAPE.n_kv_heads * sequence.cache.pages.page_bytes
    for action, n in steps:
        tier.trim(least + (n % 9) * _block_bytes(sequence.cache.pages))
        if action == "read":
            sequence.append(n)
        elif action == "truncate":
            sequence.truncate(max(N_CARRIERS + 1, len(sequence.k) - n * 5))
        else:
            for _ in range(n // 8 + 1):
                sequence.decode()
    sequence.check()


def test_a_full_disk_gives_one_sentence_and_marks_the_tier(rng, monkeypatch):
    pages, before = _tiered(1, (64, 64), 20, rng)

    def full(fd, buffers, offset):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(record_io.os, "pwritev", full)
    with pytest.raises(DiskTierError, match="No space left on device.*make room"):
        pages.tier.trim(0)
    assert pages.tier.disk.failed
    assert np.array_equal(pages.kv, before), "a page left memory without being written"


def test_a_spill_file_needs_a_folder(tmp_path, monkeypatch):
    with pytest.raises(DiskTierError, match="set TMPDIR"):
        record_io.SpillFile(4096, str(tmp_path / "missing"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert record_io.spill_folder() == str(tmp_path)
    spill = record_io.SpillFile(4096)
    assert list(tmp_path.iterdir()) == [], "the file has a name"
    spill.close()


@given(st.permutations(range(24)), st.integers(1, 24), st.sampled_from([512, 1024]))
@settings(deadline=None, max_examples=30)
def test_records_of_any_order_reach_their_rows_however_little_a_read_gives(order, n, size):
    content = np.random.default_rng(0).integers(0, 256, (24, 1024), np.uint8)
    out, preadv = record_io.aligned(24, size), record_io.os.preadv
    out[:] = 7
    at = np.arange(24)[::-1][:n].copy()

    def sparing(fd: int, parts: list, offset: int) -> int:
        return preadv(fd, [parts[0][: max(1, len(parts[0]) // 2)]], offset)

    with tempfile.TemporaryFile() as file, pytest.MonkeyPatch.context() as patch:
        file.write(content.tobytes())
        file.flush()
        patch.setattr(record_io.os, "preadv", sparing)
        record_io.read_records(file.fileno(), np.array(order[:n]), out, at, 1024)
    assert np.array_equal(out[at], content[order[:n], :size])
    assert (out[np.setdiff1d(np.arange(24), at)] == 7).all()


def test_pages_new_to_the_spill_file_lie_behind_one_another(rng):
    pages, content = _tiered(1, (64, 64), 40, rng)
    tier = pages.tier
    tier.trim(20 * pages.page_bytes)
    tier.trim(0)
    assert tier.disk._spill.n_records == 39  # all but page 0, which never leaves
    assert np.array_equal(tier.some(0, np.arange(40)), content[0])
