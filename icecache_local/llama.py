"""IceLlama: a llama_cpp.Llama whose context may be far longer than the device's memory."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import llama_cpp
import numpy as np

from . import handover
from .attribution import Attribution
from .config import CacheConfig
from .errors import (
    ConfigError,
    ContextFullError,
    EmptyPromptError,
    IceCacheError,
    UnsupportedModelError,
)
from .gguf_info import read_model_info
from .hook import check_build
from .kv_cache import KVCache
from .options import check_messages, check_options, rope_overrides
from .planner import check_fits, largest_n_ctx
from .sessions.methods import SessionMethods
from .stats import CacheStats
from .support import verdict
from .vram import check_vram, loading, offloaded

Progress = Callable[[int, int], None]


class IceContext:
    """The llama_context as `Llama` sees it, with the KV cache beneath.

    Everything that is not about the cache is llama-cpp-python's own `LlamaContext`.
    """

    def __init__(self, inner: object, kv: KVCache) -> None:
        self._inner = inner
        self._kv = kv
        self.exact = False  # attend to everything even for a single token

    def __getattr__(self, name: str) -> object:
        """Everything else is the wrapped context's."""
        return getattr(self._inner, name)

    def n_ctx(self) -> int:
        """Tokens the user may fill."""
        return self._kv.n_ctx

    def decode(self, batch: object) -> None:
        """Evaluate one batch of consecutive tokens."""
        kv, n_new = self._kv, batch.batch.n_tokens
        phase = "prefill" if self.exact or n_new > 1 else "decode"
        kv.begin(batch.batch.pos[0], n_new, self.exact)
        try:
            with kv.counters.phase(phase, n_new):
                self._inner.decode(batch)
                kv.hook.check()
            kv.end(n_new)
        except BaseException:
            kv.fail()
            kv.hook.check()  # what a callback raised tells more than llama.cpp's return code
            raise

    def kv_cache_clear(self) -> None:
        """Forget the sequence."""
        self._kv.clear()

    def kv_cache_seq_rm(self, seq_id: int, p0: int, p1: int) -> bool:
        """Drop the tokens from `p0` on; only whole tails may be dropped.

        Raises
        ------
        IceCacheError
            `p1` names a position inside the sequence.
        """
        if 0 <= p1 < self._kv.n_tokens:
            raise IceCacheError("IceLlama keeps one sequence; only its end can be removed.")
        return self._kv.truncate(max(0, p0))

    def kv_cache_seq_cp(self, *_: int) -> None:
        """Refused: there is one sequence."""
        raise IceCacheError("IceLlama keeps one sequence; it cannot be copied inside a context.")

    def kv_cache_seq_keep(self, seq_id: int) -> None:
        """Keep the only sequence."""

    def kv_cache_seq_shift(self, *_: int) -> None:
        """Refused: keys are cached after RoPE."""
        raise IceCacheError("IceLlama cannot shift positions; raise n_ctx instead.")


@dataclass
class IceState(llama_cpp.llama.LlamaState):
    """A `LlamaState` with the host tier of the sequence."""

    def __init__(self, base: llama_cpp.llama.LlamaState, cache: dict[str, np.ndarray]) -> None:
        self.__dict__.update(base.__dict__)
        self.cache = cache


class IceLlama(SessionMethods, llama_cpp.Llama):
    """`llama_cpp.Llama` with the KV cache in host memory and a few resident tokens per head.

    Parameters
    ----------
    model_path : str
        A GGUF file.
    n_ctx : int
        Tokens the user may fill; host memory is the limit. 0 takes what the model was trained
        for, or less where that does not fit.
    cache : CacheConfig, optional
        Budget, sink and window.
    n_batch : int
        Tokens per step of reading a prompt (llama.cpp's n_batch and n_ubatch).
    progress : callable, optional
        Called with (tokens read, tokens of this prompt) while a prompt is read. What it raises
        ends the reading; what has been read stays.
    attribution : bool
        Record which positions each answer attends to; see `looked_at`.
    **llama_options
        Every other option of `llama_cpp.Llama`, except those that would change the cells.

    Raises
    ------
    ModelFileError, UnsupportedModelError, HostMemoryError, DeviceError, ConfigError,
    BuildMismatchError
        Each with one sentence that says what to do; nothing stays loaded.
    """

    kv_class = KVCache

    def __init__(
        self,
        model_path: str,
        *,
        n_ctx: int = 0,
        cache: CacheConfig | None = None,
        n_batch: int = 512,
        progress: Progress | None = None,
        attribution: bool = False,
        **llama_options: object,
    ) -> None:
        # Llama.__del__ closes this even when a check below refuses the model.
        self._stack = _NothingToClose()
        check_options(llama_options)
        check_build()
        config = cache or CacheConfig()
        info = read_model_info(model_path)
        supported, sentence = verdict(info)
        if not supported:
            raise UnsupportedModelError(sentence)
        n_gpu_layers = llama_options.get("n_gpu_layers", 0)
        away = offloaded(n_gpu_layers)
        n_ctx = n_ctx or min(info.n_ctx_train, largest_n_ctx(info, config, n_gpu_layers=away))
        if n_ctx < 1:
            raise ConfigError(f"n_ctx is {n_ctx}; it must be at least 1.")
        check_fits(info, config, n_ctx, n_gpu_layers=away)
        check_vram(info, config, n_gpu_layers)
        self.cache_config = config
        self.progress = progress
        self._attribution = Attribution(n_ctx) if attribution else None
        self._reading = 0
        self._prompt_next = False
        self._info = info
        self._llama_options = dict(llama_options)
        self._user_n_ctx = n_ctx
        self._kv: KVCache | None = None
        n_cells = config.n_cells(min(n_ctx, n_batch), info.n_swa)
        overrides = rope_overrides(info, llama_options.pop("kv_overrides", None), n_ctx, n_cells)
        with loading(info, n_gpu_layers):
            super().__init__(
                str(model_path),
                n_ctx=n_ctx,
                n_batch=n_batch,
                n_ubatch=n_batch,
                flash_attn=True,
                kv_overrides=overrides or None,
                **llama_options,
            )
        try:
            self._kv.bind(self._ctx.ctx)
        except BaseException:
            self.close()
            raise
        self._kv.attribution = self._attribution
        self._ctx = IceContext(self._ctx, self._kv)
        self._n_ctx = n_ctx

    @property
    def context_params(self) -> llama_cpp.llama_context_params:
        """Parameters of the llama_context: its `n_ctx` is the number of cells.

        `Llama.__init__` fills them in before the model is loaded and reads them afterwards;
        in between the context is made small and gets the hook.
        """
        params = self._context_params
        if self._kv is None and "_model" in self.__dict__:
            self._kv = self.kv_class(
                self._info,
                self.cache_config,
                self._user_n_ctx,
                self.n_batch,
                self.n_threads,
                self.n_threads_batch,
            )
            params.n_ctx = self._kv.n_cells
            self._kv.hook.install(params)
        return params

    @context_params.setter
    def context_params(self, params: llama_cpp.llama_context_params) -> None:
        self._context_params = params

    @property
    def cache_stats(self) -> CacheStats:
        """Tokens, bytes per tier, times per stage and hit rate of the current sequence."""
        return CacheStats.of(self._kv)

    def looked_at(self) -> np.ndarray:
        """Attention mass of each position in the last answer's steps, layers and heads summed.

        Positions of the sink are 0, and all are while everything fits in the cells: there is
        no selection to read from. So is the first token of an answer, which attends to
        everything.

        Returns
        -------
        float32 array [n_tokens]
            1 is the whole attention of one head in one step.

        Raises
        ------
        ConfigError
            The model was not loaded with `attribution=True`.
        """
        if self._attribution is None:
            raise ConfigError("Nothing was recorded: load the model with attribution=True.")
        return self._attribution.mass[: self.n_tokens].copy()

    def n_ctx(self) -> int:
        """Tokens the user may fill."""
        return self._user_n_ctx

    def eval(self, tokens: Sequence[int]) -> None:
        """Evaluate tokens; several at once, or the first after a cut, attend to everything.

        Raises
        ------
        ContextFullError
            They do not fit in `n_ctx`.
        """
        if self.n_tokens + len(tokens) > self._user_n_ctx:
            raise ContextFullError(
                f"{self.n_tokens + len(tokens)} tokens do not fit in n_ctx = "
                f"{self._user_n_ctx}: raise n_ctx or shorten the conversation."
            )
        self._ctx.kv_cache_seq_rm(-1, self.n_tokens, -1)
        if self._kv.n_tokens < self.n_tokens:
            # llama.cpp could not cut and has forgotten what comes before: it is read again.
            tokens = [*self.input_ids[: self.n_tokens].tolist(), *tokens]
            self.n_tokens = 0
        self._ctx.exact = self._prompt_next or len(tokens) > 1
        self._prompt_next = False
        if not (self._ctx.exact and self.progress):
            super().eval(tokens)
            return
        for first in range(0, len(tokens), self.n_batch):
            super().eval(tokens[first : first + self.n_batch])
            self.progress(min(first + self.n_batch, len(tokens)), len(tokens))

    def generate(self, tokens: Sequence[int], *args: object, **kwargs: object) -> Generator:
        """Generate tokens; see `llama_cpp.Llama.generate`.

        Raises
        ------
        EmptyPromptError
            `tokens` is empty.
        """
        if not len(tokens):
            raise EmptyPromptError("The prompt is empty: give at least one token.")
        self._prompt_next = True
        if self._attribution is not None:
            self._attribution.reset()
        return super().generate(tokens, *args, **kwargs)

    def _create_completion(self, prompt: object, *args: object, **kwargs: object) -> object:
        completion = super()._create_completion(prompt, *args, **kwargs)
        try:
            yield from completion
        except ValueError as error:
            if "exceed context window" not in str(error):
                raise
            count = str(error).partition("(")[2].partition(")")[0]
            raise ContextFullError(
                f"The prompt has {count} tokens, but n_ctx is {self._user_n_ctx} and an answer "
                f"needs room too: raise n_ctx or shorten the prompt."
            ) from None

    def create_chat_completion(
        self, messages: Sequence[dict], *args: object, **kwargs: object
    ) -> object:
        """Continue a chat of text; see `llama_cpp.Llama.create_chat_completion`.

        Raises
        ------
        ConfigError
            A message holds an image or audio.
        """
        check_messages(messages)
        return super().create_chat_completion(messages, *args, **kwargs)

    def reset(self) -> None:
        """Forget the sequence."""
        super().reset()
        self._kv.clear()

    def save_state(self) -> IceState:
        """Snapshot of the sequence, host tier included."""
        return IceState(super().save_state(), handover.state(self._kv))

    def load_state(self, state: IceState) -> None:
        """Return to a snapshot of `save_state`.

        Raises
        ------
        IceCacheError
            The snapshot is not one of an IceLlama with the same model and cache settings.
        """
        if not isinstance(state, IceState):
            raise IceCacheError("This state was saved by llama_cpp.Llama; read the prompt again.")
        self._kv.clear()
        super().load_state(state)
        handover.load_state(self._kv, state.cache)

    def __getstate__(self) -> dict[str, object]:
        """Return the options to make an equal, empty IceLlama."""
        options = super().__getstate__()
        del options["flash_attn"], options["n_ubatch"]
        return options | {
            "n_ctx": self._user_n_ctx,
            "cache": self.cache_config,
            "progress": self.progress,
            "attribution": self._attribution is not None,
        }


class _NothingToClose:
    def close(self) -> None:
        pass
