"""A snapshot: one sequence's tokens, pages and index, in a folder that is never changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from ..config import PAGE, ModelShape
from ..errors import SessionDamagedError
from ..host_pages import HostPages
from ..layer_cache import LayerCache
from .files import ADVICE, Tables, is_size, read_json, sync_folder, write_json, write_tables
from .page_file import PageFile, record_size, write_pages
from .settings import MOST_TOKENS, Settings
from .soundness import check_layer

MOST_DIM = 4096


class Layer(Protocol):
    """What is stored of one layer: a `LayerCache`, or `OrderedPages` in the dense phase."""

    shape: ModelShape
    pages: HostPages

    def tables(self) -> dict[str, np.ndarray]:
        """Everything but K and V."""

    def page_order(self) -> np.ndarray:
        """Pages in the order of the file; int32 [G, n]."""


class Layout(NamedTuple):
    """Which positions llama.cpp holds, and in what order its cells lie.

    Attributes
    ----------
    cells : int32 array [C + n_real]
        Rank of the cell of each carrier (positions 0 to C - 1), then of each of the latest
        `n_real` tokens. In the dense phase there are no carriers and `n_real` is all tokens.
    n_real : int
    """

    cells: np.ndarray
    n_real: int


class Image(NamedTuple):
    """All that a snapshot holds of what a model has read.

    Attributes
    ----------
    fingerprint : dict
        Of the model; see `fingerprint.fingerprint_of`.
    settings : Settings
    tokens : int32 array [n]
    layout : Layout
    layers : dict of int to Layer
        By llama.cpp's layer number; `LayerCache`s in the sparse phase.
    """

    fingerprint: dict[str, object]
    settings: Settings
    tokens: np.ndarray
    layout: Layout
    layers: dict[int, Layer]


def write_snapshot(folder: Path, image: Image) -> int:
    """Write a new snapshot; `folder` appears when all of it is on the disk.

    Parameters
    ----------
    folder : Path
        Must not exist; its parent must.
    image : Image

    Returns
    -------
    int
        Bytes written.

    Raises
    ------
    OSError
        The disk is full or failed; nothing is left.
    """
    partial = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    try:
        described, sums, places = [], {}, {}
        for number, layer in image.layers.items():
            order, shape = layer.page_order(), layer.shape
            sums[number] = write_pages(partial / page_name(number), layer.pages, order)
            places[number] = np.argsort(order, axis=1).astype(np.int32)
            described.append(
                [number, shape.n_heads, shape.n_kv_heads, shape.head_dim_k, shape.head_dim_v]
                + [order.shape[1]]
            )

        def tables() -> object:
            yield "tokens", image.tokens
            yield "cells", image.layout.cells
            for number, layer in image.layers.items():
                yield f"{number}.checksums", sums[number]
                yield f"{number}.place", places[number]
                for name, table in layer.tables().items():
                    yield f"{number}.{name}", table

        header = {
            "fingerprint": image.fingerprint,
            "settings": image.settings.to_json(),
            "n_tokens": len(image.tokens),
            "n_cells": len(image.layout.cells),
            "n_real": image.layout.n_real,
            "layers": described,
            "tables": write_tables(partial / "tables", tables()),
        }
        write_json(partial / "header", header)
        n_bytes = sum(file.stat().st_size for file in partial.iterdir())
        os.rename(partial, folder)
        sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return n_bytes


def page_name(layer: int) -> str:
    """Name of a layer's pages file."""
    return f"pages-{layer:03d}"


class Snapshot:
    """A snapshot on disk.

    Parameters
    ----------
    folder : Path

    Attributes
    ----------
    fingerprint : dict
    settings : Settings
    n_tokens : int
    shapes : dict of int to ModelShape
        By layer number.
    layout : Layout
    tokens : int32 array [n]

    Raises
    ------
    SessionDamagedError
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[int, PageFile] = {}
        header = read_json(folder / "header")
        self._damaged = SessionDamagedError(f"{folder} is damaged; {ADVICE}.")
        try:
            self._read_header(header)
        except (KeyError, TypeError, ValueError, AttributeError, OSError):
            raise self._damaged from None
        self.tables = Tables(folder / "tables", header["tables"])
        try:
            self.tokens = self.tables.read("tokens", np.int32, (self.n_tokens,))
            cells = self.tables.read("cells", np.int32, (self._n_cells,))
            whole = len(self.tokens) == self.n_tokens and len(cells) == self._n_cells
            if not whole or not np.array_equal(np.sort(cells), np.arange(self._n_cells)):
                raise self._damaged
        except BaseException:
            self.close()
            raise
        self.layout = Layout(cells, self._n_real)

    def _read_header(self, header: dict) -> None:
        self.fingerprint = dict(header["fingerprint"])
        self.settings = Settings.from_json(header["settings"])
        self.n_tokens, self._n_cells = header["n_tokens"], header["n_cells"]
        self._n_real = header["n_real"]
        self.shapes: dict[int, ModelShape] = {}
        self._n_pages: dict[int, int] = {}
        sound = is_size(self.n_tokens, MOST_TOKENS) and is_size(self._n_cells, self.n_tokens)
        if not (sound and is_size(self._n_real, self._n_cells) and self._n_real):
            raise self._damaged
        for number, *shape, n_pages in header["layers"]:
            sound = len(shape) == 4 and all(is_size(n, MOST_DIM) for n in (number, *shape))
            if not (sound and is_size(n_pages, MOST_TOKENS)) or number in self.shapes:
                raise self._damaged
            n_heads, n_kv_heads, dim_k, dim_v = shape
            record = record_size(2 * PAGE * (dim_k + dim_v))
            found = (self.folder / page_name(number)).stat().st_size
            if not found or found != n_kv_heads * n_pages * record or n_heads % n_kv_heads:
                raise self._damaged
            self.shapes[number] = ModelShape(len(header["layers"]), *shape)
            self._n_pages[number] = n_pages
        if not self.shapes:
            raise self._damaged

    @property
    def is_sparse(self) -> bool:
        """Whether the sequence had outgrown llama.cpp's cells."""
        return self._n_real < self.n_tokens

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.folder.iterdir())

    def page_file(self, layer: int) -> PageFile:
        """Open a layer's pages, until `close`."""
        if layer in self._files:
            return self._files[layer]
        shape, n_pages = self.shapes[layer], self._n_pages[layer]
        path = self.folder / page_name(layer)
        n_records = shape.n_kv_heads * n_pages
        page_bytes = 2 * PAGE * (shape.head_dim_k + shape.head_dim_v)
        checksums = self.tables.read(f"{layer}.checksums", np.uint64, (n_records,))
        place = self.tables.read(f"{layer}.place", np.int32, (shape.n_kv_heads, n_pages))
        in_use = np.sort(place, axis=1)
        if place.shape != (shape.n_kv_heads, n_pages) or (in_use != np.arange(n_pages)).any():
            raise self._damaged
        file = PageFile(path, shape.n_kv_heads, n_pages, page_bytes, checksums, place)
        self._files[layer] = file
        return file

    def load_layer(self, layer: int, cache: LayerCache, lazy: bool = False) -> None:
        """Bring a new `LayerCache` into the stored state; its cells are not written.

        The slots are empty if there is another number of them than was stored. `lazy`: indexed
        pages are read, and their checksums compared, when they are needed.

        Raises
        ------
        SessionDamagedError
        """
        tables, in_place = {}, cache.tables_in_place()
        for name, limit in cache.table_limits().items():
            is_of_slots = name in ("token_in", "rows")
            if is_of_slots and cache.config.budget != self.settings.cache.budget:
                tables[name] = np.zeros_like(limit)
            else:
                into = in_place.get(name)
                tables[name] = self.tables.read(f"{layer}.{name}", limit.dtype, limit.shape, into)
        if not check_layer(cache, tables, self.n_tokens, self._n_pages[layer]):
            raise self._damaged
        cache.load_tables(tables)
        cache.load_pages(self.page_file(layer), lazy)

    def ordered_pages(self, layer: int) -> HostPages:
        """Pages of a layer of the dense phase: token t is row t % 16 of page t // 16."""
        n_pages = -(-self.n_tokens // PAGE)
        if self._n_pages[layer] != n_pages:
            raise self._damaged
        pages = HostPages(self.shapes[layer], n_pages)
        pages.n_pages[:] = n_pages
        pages.fill_from(self.page_file(layer))
        return pages

    def close(self) -> None:
        """Close the files."""
        self.tables.close()
        for file in self._files.values():
            file.close()
