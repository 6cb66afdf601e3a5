"""A damaged session is refused in one sentence; it never opens as something else."""

from __future__ import annotations

import json
import shutil
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from random_session import RandomSequence, digest_of, saved
from xxhash import xxh3_64_intdigest

from icecache_local.errors import SessionDamagedError, SessionError
from icecache_local.sessions.files import VERSION, read_json, write_json
from icecache_local.sessions.session import Session
from icecache_local.sessions.verify import verify_session

MOST_BYTES = 64 << 20  # to be allocated while a damaged session is opened


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> tuple[Path, str]:
    """A session and the digest of its state."""
    folder = tmp_path_factory.mktemp("fuzz") / "pristine"
    return folder, saved(folder, n_steps=2)


def files_of(folder: Path) -> list[Path]:
    """All files but the lock, in a fixed order."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "lock")


def mutate(rng: np.random.Generator, folder: Path) -> str:
    """Damage one file; what was done, in words."""
    files = files_of(folder)
    path = files[rng.integers(len(files))]
    data = bytearray(path.read_bytes())
    kind = int(rng.integers(7)) if data else 3  # cut to nothing before: only more can come
    at = int(rng.integers(max(1, len(data))))
    if kind == 0:
        data[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        data[at : at + 8] = rng.bytes(len(data[at : at + 8]))
    elif kind == 2:
        del data[at:]
    elif kind == 3:
        data += rng.bytes(int(rng.integers(1, 100)))
    elif kind == 4:
        n = int(rng.integers(1, 600))
        data[at : at + n] = bytes(len(data[at : at + n]))
    elif kind == 5:
        data[:] = files[rng.integers(len(files))].read_bytes()
    else:
        path.unlink()
        return f"{path.name} removed"
    path.write_bytes(data)
    return f"{path.name} kind {kind} at {at}"


def run(pristine: tuple[Path, str], tmp_path: Path, n: int, seed: int) -> int:
    """Open `n` damaged copies; how many were refused."""
    folder, expected = pristine
    rng, refused = np.random.default_rng(seed), 0
    for i in range(n):
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        done = [mutate(rng, copy) for _ in range(int(rng.integers(1, 3)))]
        try:
            assert digest_of(copy) == expected, f"{i}: {done}"
        except SessionError as error:
            refused += 1
            assert "\n" not in str(error) and str(error).endswith("."), f"{i}: {done}"
        shutil.rmtree(copy)
    return refused


def test_2000_mutations(pristine, tmp_path) -> None:
    assert run(pristine, tmp_path, 2000, 0) > 1000


@pytest.mark.nightly
def test_100000_mutations(pristine, tmp_path) -> None:
    assert run(pristine, tmp_path, 100_000, 1) > 50_000


# -- files whose checksums are right, but whose content is not -------------------------------------


def numbers_in(value: object, path: tuple = ()) -> list[tuple]:
    """Paths of all whole numbers in a JSON value."""
    if isinstance(value, dict):
        return [p for key, item in value.items() for p in numbers_in(item, (*path, key))]
    if isinstance(value, list):
        return [p for i, item in enumerate(value) for p in numbers_in(item, (*path, i))]
    return [path] if type(value) is int else []


def put(value: object, path: tuple, new: object) -> None:
    """Replace what lies at `path`."""
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = new


HOSTILE = (0, 1, -1, 7, 1 << 20, 1 << 31, (1 << 30) - 1, 1 << 62, 1 << 70, 2.5, None, "x", [], True)


def test_hostile_numbers_in_the_header(pristine, tmp_path) -> None:
    """Each number of header and state, replaced; nothing of that size is allocated."""
    folder, expected = pristine
    snapshot = next(folder.glob("snapshot-*")).name
    refused = 0
    for name in (f"{snapshot}/header", "state"):
        paths = numbers_in(read_json(folder / name))
        tables = [path for path in paths if path[0] == "tables"]
        for path in [p for p in paths if p[0] != "tables"] + tables[::9]:
            for new in HOSTILE:
                copy = tmp_path / "copy"
                shutil.copytree(folder, copy)
                content = read_json(copy / name)
                put(content, path, new)
                write_json(copy / name, content)
                tracemalloc.start()
                try:
                    verify_session(copy)
                except SessionError:
                    refused += 1
                assert tracemalloc.get_traced_memory()[1] < MOST_BYTES, (path, new)
                tracemalloc.stop()
                shutil.rmtree(copy)
    assert refused > 300
    assert digest_of(folder) == expected


def test_hostile_tables(pristine, tmp_path) -> None:
    """Arrays with wrong numbers and right checksums: refused, or at least of no harm."""
    folder, rng = pristine[0], np.random.default_rng(0)
    snapshot = next(folder.glob("snapshot-*")).name
    places = read_json(folder / snapshot / "header")["tables"]
    refused = 0
    for _ in range(150):
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        header = read_json(copy / snapshot / "header")
        data = bytearray((copy / snapshot / "tables").read_bytes())
        which = int(rng.integers(len(places)))
        name, dtype, shape, offset, _ = places[which]
        n_bytes = np.dtype(dtype).itemsize * int(np.prod(shape))
        table = np.frombuffer(data, dtype, int(np.prod(shape)), offset).copy()
        if not len(table):
            shutil.rmtree(copy)
            continue
        with np.errstate(over="ignore"):
            values = np.array(rng.choice([-1, 0, 1, 3, 17, 90, 2000, 1 << 30])).astype(dtype)
        table[rng.integers(len(table), size=int(rng.integers(1, 4)))] = values
        data[offset : offset + n_bytes] = table.tobytes()
        (copy / snapshot / "tables").write_bytes(data)
        checksum = xxh3_64_intdigest(bytes(data[offset : offset + n_bytes]))
        header["tables"][which][4] = f"{checksum:016x}"
        write_json(copy / snapshot / "header", header)
        try:
            session = Session(copy)
            try:
                sequence = RandomSequence.opened(session, rng)
                sequence.step()
                sequence.step()
            finally:
                session.close()
        except SessionError:
            refused += 1
        shutil.rmtree(copy)
    assert refused > 50


def test_hostile_json(tmp_path) -> None:
    """Frames with right checksums around what is no state."""
    folder = tmp_path / "s"
    saved(folder, n_steps=0)
    payloads = [b"", b"[]", b"1", b"{}", b"[" * 100_000, b"\xff\xfe", b'{"a":NaN}']
    payloads += [json.dumps({"snapshot": name}).encode() for name in ("../s", "snapshot-", 3)]
    for payload in payloads:
        checksum = xxh3_64_intdigest(payload)
        frame = struct.pack("<8sIIQQ", b"ICELOCAL", VERSION, 0, len(payload), checksum)
        (folder / "state").write_bytes(frame + payload)
        with pytest.raises(SessionDamagedError):
            Session(folder)


@pytest.mark.parametrize("version, advice", [(VERSION + 1, "update"), (1, "read the text again")])
def test_another_format_is_told_apart_from_damage(tmp_path, version, advice) -> None:
    saved(tmp_path / "s", n_steps=0)
    state = tmp_path / "s" / "state"
    data = bytearray(state.read_bytes())
    data[8:12] = struct.pack("<I", version)
    state.write_bytes(data)
    with pytest.raises(SessionDamagedError, match=f"version {version}.*{advice}"):
        Session(tmp_path / "s")
