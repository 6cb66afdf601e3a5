"""CacheConfig and ModelShape: every default and every check of the cache's parameters."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import ConfigError

PAGE = 16  # tokens per page: the granularity of the index, the host tier and the SSD
CELL_ALIGN = 256  # llama.cpp pads the number of cells it attends to to a multiple of this


@dataclass(frozen=True)
class CacheConfig:
    """What stays resident on the device, and how the rest is searched.

    Parameters
    ----------
    budget : int
        Resident tokens per KV head, sink and window included (as in IceCache,
        arXiv 2604.10539).
    sink, window : int, optional
        First and latest tokens that are always resident. By default
        min(32, budget // 4) each.
    candidate_pages : int
        Pages per KV head whose tokens are compared at each step; twice as many tokens, the
        best of these, are then scored exactly.
    seed : int
        Seed of the index.
    ram_limit : int, optional
        Most bytes of K and V pages in host memory; the others lie on the disk. By default
        everything is in memory.
    selective : float, optional
        Share of a reopened session's pages, 0.05 to 0.5, that a new question reads; the answer is
        then not exact. By default it reads all.
    """

    budget: int = 256
    sink: int | None = None
    window: int | None = None
    candidate_pages: int = 1024
    seed: int = 0
    ram_limit: int | None = None
    selective: float | None = None

    def __post_init__(self) -> None:
        """Fill in the defaults that depend on the budget, and check everything."""
        quarter = min(32, max(self.budget, 0) // 4)
        for name in ("sink", "window"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, quarter)
        if self.sink < 1:
            raise ConfigError(f"sink is {self.sink}; it must be at least 1.")
        if self.window < 2:
            raise ConfigError(f"window is {self.window}; it must be at least 2.")
        least = self.sink + self.window + 1
        if self.budget < least:
            raise ConfigError(
                f"budget is {self.budget}, but sink {self.sink} + window {self.window} + 1 "
                f"selected token need {least}: raise budget or lower sink and window."
            )
        if self.candidate_pages < 1:
            raise ConfigError(f"candidate_pages is {self.candidate_pages}; it must be at least 1.")
        if self.ram_limit is not None and self.ram_limit < 1:
            raise ConfigError(f"ram_limit is {self.ram_limit} bytes; it must be positive.")
        if self.selective is not None and not 0.05 <= self.selective <= 0.5:
            raise ConfigError(f"selective is {self.selective}; it must lie between 0.05 and 0.5.")

    def n_cells(self, n_batch: int, n_swa: int = 0) -> int:
        """Cells of llama.cpp's own cache: budget + n_batch + n_swa, padded to `CELL_ALIGN`.

        Parameters
        ----------
        n_batch : int
            Most tokens of one ubatch.
        n_swa : int
            Sliding window in tokens; the latest ones keep cells for the layers that have one.
        """
        return -(-(self.budget + n_batch + n_swa) // CELL_ALIGN) * CELL_ALIGN


@dataclass(frozen=True)
class ModelShape:
    """The attention shape of a model: L layers, H query heads, G KV heads, K and V head dims."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim_k: int
    head_dim_v: int

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.n_heads // self.n_kv_heads

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's f16 K and V in one layer."""
        return 2 * self.n_kv_heads * (self.head_dim_k + self.head_dim_v)
