"""The header of one GGUF file: key/value pairs and the size of its tensors.

Imports `gguf`, so import this module only when a file is to be read.
"""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.gguf_reader import ReaderField

from .errors import ModelFileError

MAX_VALUES = 65536  # longer number arrays (token scores) are skipped like strings
PART = re.compile(r"-(\d{5})-of-(\d{5})$")


class _HeaderReader(GGUFReader):
    """A GGUFReader that steps over the vocabulary and never touches tensor data.

    The base class makes several numpy objects per vocabulary entry: seconds for 150k tokens.
    """

    data_end: int

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list, list, list]:
        if self.byte_order == "S":
            raise ModelFileError("big-endian")
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        item = self._get(orig_offs, np.uint32)
        count = self._get(orig_offs + 4, np.uint64)
        start, n = orig_offs + 12, int(count[0])
        types = [GGUFValueType.ARRAY, GGUFValueType(int(item[0]))]
        if types[1] == GGUFValueType.STRING:
            return self._skip_strings(start, n) - orig_offs, [item, count], [], types
        dtype = self.gguf_scalar_to_np[types[1]]
        size = n * np.dtype(dtype).itemsize
        if start + size > len(self.data):
            raise IndexError("array beyond the end of the file")
        if n > MAX_VALUES:
            return 12 + size, [item, count], [], types
        return 12 + size, [item, count, self._get(start, dtype, n)], [2], types

    def _skip_strings(self, offset: int, n: int) -> int:
        """Return the offset behind `n` strings."""
        buffer, length = memoryview(self.data), struct.Struct("<Q").unpack_from
        for _ in range(n):
            offset += 8 + length(buffer, offset)[0]
        return offset

    def _build_tensors(self, start_offs: int, fields: list[ReaderField]) -> None:
        """Find the size of each tensor and where the last one ends."""
        self.data_end = 0
        self.rows: dict[str, int] = {}
        self.bytes_of: dict[str, int] = {}
        for field in fields:
            _, name, _, dims, raw_type, offset = field.parts
            block, size = GGML_QUANT_SIZES[GGMLQuantizationType(int(raw_type[0]))]
            n_bytes = math.prod(dims.tolist()) // block * size
            self.data_end = max(self.data_end, start_offs + int(offset[0]) + n_bytes)
            self.rows[bytes(name).decode()] = int(dims[-1])
            self.bytes_of[bytes(name).decode()] = n_bytes


class Header:
    """Key/value pairs of one GGUF file.

    Attributes
    ----------
    path : Path
    tensor_names : frozenset of str
        Names of the tensors in this file.
    bytes_of : dict of str to int
        Bytes of each tensor in this file.
    n_vocab : int
        Vocabulary size, 0 if neither tokenizer nor embedding matrix are in the file.
    """

    def __init__(self, path: Path, reader: _HeaderReader) -> None:
        self.path = path
        self.tensor_names = frozenset(reader.rows)
        self.bytes_of = reader.bytes_of
        self._values = {
            name: field.contents()
            for name, field in reader.fields.items()
            if name != "tokenizer.ggml.tokens"
        }
        tokens = reader.get_field("tokenizer.ggml.tokens")
        if tokens is not None and len(tokens.parts) > 4:
            self.n_vocab = int(tokens.parts[4][0])
        else:
            self.n_vocab = reader.rows.get("token_embd.weight", 0)

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a metadata key, or `default` where the file lacks it."""
        return self._values.get(key, default)


def read_header(path: Path) -> Header:
    """Read the header of one file and check that its tensors are all there.

    Parameters
    ----------
    path : Path

    Returns
    -------
    Header

    Raises
    ------
    ModelFileError
        If the file is missing, unreadable, a directory, not a GGUF, damaged or truncated.
    """
    if path.is_dir():
        raise ModelFileError(f"{path} is a directory; pass the .gguf file in it.")
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except FileNotFoundError:
        raise ModelFileError(f"{path} does not exist; check the path of the model.") from None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}.") from None
    if magic != b"GGUF":
        raise ModelFileError(f"{path} is not a GGUF file; pass a model in llama.cpp's format.")
    try:
        reader = _HeaderReader(path)
        header = Header(path, reader)
    except ModelFileError:
        raise ModelFileError(
            f"{path} is big-endian, which llama.cpp cannot load here; download a usual one."
        ) from None
    except (IndexError, KeyError, TypeError, ValueError, OverflowError, struct.error) as error:
        raise ModelFileError(
            f"{path} is damaged or of an unknown GGUF version ({error}); download it again."
        ) from error
    if reader.data_end > path.stat().st_size:
        missing = reader.data_end - path.stat().st_size
        raise ModelFileError(
            f"{path} is truncated, {missing:,} bytes are missing; download it again."
        )
    return header


def read_parts(first: Header) -> list[Header]:
    """Read the other parts of a model that was split into several files.

    Parameters
    ----------
    first : Header
        The file the user named.

    Returns
    -------
    list of Header
        Parts 2, 3, ...; empty for a model in one file.

    Raises
    ------
    ModelFileError
        If `first` is not the first part, or a part is missing or damaged.
    """
    count, number = int(first.get("split.count", 1)), int(first.get("split.no", 0)) + 1
    if count <= 1:
        return []
    path = first.path
    if not PART.search(path.stem):
        raise ModelFileError(
            f"{path} is one of {count} parts but not named like one; "
            f"give it back its name ending in -{number:05d}-of-{count:05d}.gguf."
        )

    def part(i: int) -> Path:
        return path.with_name(PART.sub(f"-{i:05d}-of-{count:05d}", path.stem) + path.suffix)

    if number != 1:
        raise ModelFileError(
            f"{path} is part {number} of {count}; pass the first part, {part(1).name}."
        )
    return [read_header(part(i)) for i in range(2, count + 1)]
