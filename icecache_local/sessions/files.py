"""Small files: framed JSON with a checksum, tables of arrays, and writes that survive a crash."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from xxhash import xxh3_64, xxh3_64_intdigest

from ..errors import SessionDamagedError, SessionError

VERSION = 4
ADVICE = "remove the session and read the text again"
_FRAME = struct.Struct("<8sIIQQ")  # magic, version, zero, bytes of the payload, their checksum
MAGIC = b"ICELOCAL"
TABLE_ALIGN = 64  # bytes
MOST_JSON = 1 << 28  # bytes of a JSON file
MOST_DIMS = 4
DTYPES = {
    np.dtype(name).newbyteorder("<").str for name in ("i1", "i4", "i8", "u1", "u2", "u8", "f4")
}


def create(path: Path) -> int:
    """File descriptor of a new file that only its owner may read."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def write_all(fd: int, data: bytes | np.ndarray) -> None:
    """Write everything; `os.write` may take less at a time."""
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[os.write(fd, rest) :]


def sync_folder(folder: Path) -> None:
    """Make renames and new files in `folder` durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_json(path: Path, content: object) -> None:
    """Replace the file at `path` by framed JSON: all of it or nothing, durable on return."""
    payload = json.dumps(
        content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()
    if len(payload) > MOST_JSON - _FRAME.size:
        raise SessionError(f"{path.name} would have {len(payload)} bytes: keep less in notes.")
    temporary = path.with_name(f"{path.name}.new")
    temporary.unlink(missing_ok=True)
    fd = create(temporary)
    try:
        frame = _FRAME.pack(MAGIC, VERSION, 0, len(payload), xxh3_64_intdigest(payload))
        write_all(fd, frame + payload)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(temporary, path)
    sync_folder(path.parent)


def read_json(path: Path) -> dict:
    """Return what `write_json` wrote.

    Raises
    ------
    SessionDamagedError
        Missing, damaged, or of another format version.
    """
    data = _read_bytes(path)
    if len(data) < _FRAME.size:
        raise SessionDamagedError(f"{path} is cut short; {ADVICE}.")
    magic, version, zero, n_bytes, checksum = _FRAME.unpack_from(data)
    payload = data[_FRAME.size :]
    if magic == MAGIC and zero == 0 and version != VERSION and 0 < version < 1 << 16:
        advice = "update it" if version > VERSION else ADVICE
        raise SessionDamagedError(
            f"{path} has format version {version}, this program knows {VERSION}: {advice}."
        )
    sound = magic == MAGIC and zero == 0 and version == VERSION and n_bytes == len(payload)
    if not sound or checksum != xxh3_64_intdigest(payload):
        raise SessionDamagedError(f"{path} is damaged; {ADVICE}.")
    try:
        content = json.loads(payload)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise SessionDamagedError(f"{path} is damaged; {ADVICE}.")
    return content


def _read_bytes(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(min(os.fstat(file.fileno()).st_size, MOST_JSON))
    except OSError as error:
        raise SessionDamagedError(f"{path}: {error.strerror}; {ADVICE}.") from None


def write_tables(path: Path, tables: Iterable[tuple[str, np.ndarray]]) -> list[list[object]]:
    """Write named arrays to a new file, durable on return.

    Returns
    -------
    list of [name, dtype, shape, offset, checksum]
        Where each lies; offsets are multiples of `TABLE_ALIGN` and ascend.
    """
    places, offset = [], 0
    fd = create(path)
    try:
        for name, array in tables:
            array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            gap = -offset % TABLE_ALIGN
            write_all(fd, bytes(gap))
            offset += gap
            data = array.reshape(-1).view(np.uint8)
            write_all(fd, data)
            checksum = xxh3_64_intdigest(data)
            places.append([name, array.dtype.str, list(array.shape), offset, f"{checksum:016x}"])
            offset += array.nbytes
        os.fsync(fd)
    finally:
        os.close(fd)
    return places


class Tables:
    """The arrays that `write_tables` wrote, read one at a time.

    Parameters
    ----------
    path : Path
    places : list
        What `write_tables` returned, as it came back from a file.

    Raises
    ------
    SessionDamagedError
        The file is missing, or `places` does not describe it.
    """

    def __init__(self, path: Path, places: object) -> None:
        self._path = path
        self._damaged = SessionDamagedError(f"{path} is damaged; {ADVICE}.")
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise SessionDamagedError(f"{path}: {error.strerror}; {ADVICE}.") from None
        self._places: dict[str, tuple[np.dtype, tuple[int, ...], int, str]] = {}
        end, size = 0, os.fstat(self._fd).st_size
        for place in places if isinstance(places, list) else [None]:
            if not (isinstance(place, list) and len(place) == 5):
                raise self._damaged
            name, dtype, shape, offset, checksum = place
            sound = isinstance(name, str) and name not in self._places and is_shape(shape)
            if not (sound and isinstance(dtype, str) and dtype in DTYPES and is_size(offset)):
                raise self._damaged
            if offset < end or offset % TABLE_ALIGN:
                raise self._damaged
            end = offset + math.prod(shape) * np.dtype(dtype).itemsize
            self._places[name] = (np.dtype(dtype), tuple(shape), offset, checksum)
        if end != size:
            raise self._damaged

    def names(self) -> list[str]:
        """All names, in the order of the file."""
        return list(self._places)

    def read(
        self,
        name: str,
        dtype: type | np.dtype,
        most: tuple[int, ...],
        into: np.ndarray | None = None,
    ) -> np.ndarray:
        """Read an array that is of the expected kind.

        Parameters
        ----------
        name : str
        dtype : dtype
        most : tuple of int
            Its shape may be no larger in any dimension.
        into : array of shape `most`, optional
            Where it is read to: the first elements of each dimension, of which only the first may
            have gaps.

        Returns
        -------
        array
            A new one, or a view of `into`.

        Raises
        ------
        SessionDamagedError
            There is none of this name, it does not fit, or its bytes are not those written.
        """
        found, shape, offset, checksum = self._places.get(name, (None, (), 0, ""))
        if found != np.dtype(dtype) or len(shape) != len(most):
            raise self._damaged
        if any(n > limit for n, limit in zip(shape, most, strict=True)):
            raise self._damaged
        if into is None:
            array = np.zeros(shape, found)
            rows = [array.reshape(-1).view(np.uint8)]
        else:
            array = into[tuple(slice(n) for n in shape)]
            rows = [row.reshape(-1).view(np.uint8) for row in array]
        rows, digest = [row for row in rows if len(row)], xxh3_64()
        try:
            got = os.preadv(self._fd, rows, offset) if rows else 0
        except OSError as error:
            raise SessionDamagedError(f"{self._path}: {error.strerror}; {ADVICE}.") from None
        for row in rows:
            digest.update(row)
        if got != array.nbytes or f"{digest.intdigest():016x}" != checksum:
            raise self._damaged
        return array

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Tables:
        """Nothing to do; the file is open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()


def is_size(value: object, most: int = 1 << 62) -> bool:
    """Whether a value from a file is a whole number in [0, most]."""
    return type(value) is int and 0 <= value <= most


def is_shape(value: object) -> bool:
    """Whether a value from a file is the shape of an array."""
    return isinstance(value, list) and len(value) <= MOST_DIMS and all(map(is_size, value))
