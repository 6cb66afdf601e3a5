"""CacheConfig and ModelShape: every default and every check of the cache's parameters."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import ConfigError

PAGE = 16  # tokens per page: the granularity of the index, the host tier and the SSD
UNREAD = 0.01  # CacheConfig.unread where memory is limited
CELL_ALIGN = 256  # llama.cpp pads the number of cells it attends to to a multiple of this
DEVICES = ("auto", "host", "ggml", "cuda")


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
    unread : float, optional
        What a decode step may do without rather than read it from the disk, 0 to 0.5: the root of
        the sum of the squared attention weights, of one head; see `admission.Admission`. 0: every
        candidate is read, and the answer is that of a cache in memory, bit for bit. By default
        0.01 with a `ram_limit`, else 0.
    selective : float, optional
        Share of a reopened session's pages, 0.05 to 0.5, that a new question reads; the answer is
        then not exact. By default it reads all.
    reuse_layers : int
        Layers behind one that searches which keep the tokens it has found, as IceCache(r) does
        with 2. The first two layers always search. Faster; how much less exact depends on the
        model, and small ones can go astray: measure with `eval --policy full,icecache-r`.
    remainder : bool
        One slot of each KV head stands for the tokens that were scored and not chosen, see
        `remainder.py`; without it a decode step attends to chosen tokens alone, as the paper does.
    device : str
        How llama.cpp's cells are reached: "host" in place, "ggml" through the functions of
        llama.cpp's backends, "cuda" through cupy. By default ("auto") each layer's own memory
        decides.
    stream_limit : int
        Most bytes of GPU memory for the buffers through which the host tier streams while a
        prompt is read; for "cuda" alone.
    """

    budget: int = 256
    sink: int | None = None
    window: int | None = None
    candidate_pages: int = 1024
    seed: int = 0
    ram_limit: int | None = None
    unread: float | None = None
    selective: float | None = None
    reuse_layers: int = 0
    remainder: bool = True
    device: str = "auto"
    stream_limit: int = 256 << 20

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
        if not 0 <= self.most_unread <= 0.5:
            raise ConfigError(f"unread is {self.unread}; it must lie between 0 and 0.5.")
        if self.selective is not None and not 0.05 <= self.selective <= 0.5:
            raise ConfigError(f"selective is {self.selective}; it must lie between 0.05 and 0.5.")
        if self.reuse_layers < 0:
            raise ConfigError(f"reuse_layers is {self.reuse_layers}; it must not be negative.")
        if self.device not in DEVICES:
            raise ConfigError(f"device is {self.device!r}; it must be one of {', '.join(DEVICES)}.")
        if self.stream_limit < 1:
            raise ConfigError(f"stream_limit is {self.stream_limit} bytes; it must be positive.")

    @property
    def most_unread(self) -> float:
        """`unread`, or its default."""
        if self.unread is not None:
            return self.unread
        return 0.0 if self.ram_limit is None else UNREAD

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
