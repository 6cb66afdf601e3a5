"""Choosing a model, seeing what it takes, and loading it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from icecache_local import CacheConfig, embedded
from icecache_local.errors import IceCacheError
from icecache_local.gguf_info import read_model_info
from icecache_local.planner import largest_n_ctx, make_plan

from . import render
from .engine import DEFAULT_N_CTX
from .page import Page, Updates, sentence

EMBEDDED = "embedded"


class ModelPanel:
    """Handlers of the events around models; all return updates by component names.

    Parameters
    ----------
    page : Page
    folders : list of Path
        Where to look for GGUF files.
    """

    def __init__(self, page: Page, folders: list[Path]) -> None:
        self.page, self.engine, self.folders = page, page.engine, folders

    def files(self) -> list[tuple[str, str]]:
        """GGUF files to choose from, by name; second parts and projectors left out."""
        found = [("Embedded model", EMBEDDED)]
        for folder in self.folders:
            for path in sorted(folder.rglob("*.gguf")):
                is_part = "-of-" in path.stem and "-00001-of-" not in path.stem
                if not is_part and "mmproj" not in path.name:
                    found.append((str(path.relative_to(folder)), str(path)))
        return found

    def plan(self, model: str, n_ctx: float, budget: float) -> Updates:
        """Tell what a model would take."""
        try:
            info, config = read_model_info(model_path(model)), CacheConfig(budget=int(budget))
            return {"plan": render.plan_table(info, make_plan(info, config, int(n_ctx or 1)))}
        except IceCacheError as error:
            return {"plan": render.notice(str(error))}

    def propose(self, model: str, budget: float) -> Updates:
        """Propose a context for a model that was just chosen, and plan it."""
        try:
            n_ctx = proposed_n_ctx(model_path(model), CacheConfig(budget=int(budget)))
        except IceCacheError as error:
            return {"plan": render.notice(str(error))}
        return {"n_ctx": n_ctx, **self.plan(model, n_ctx, budget)}

    def load(self, model: str, n_ctx: float, budget: float) -> Iterator[Updates]:
        """Load a model; `refresh` shows what it means for the chat."""
        yield {"notice": render.notice("Loading the model …", "info")}
        message = ""
        try:
            config = CacheConfig(budget=int(budget))
            self.engine.load(model_path(model), int(n_ctx or 0), config)
            self.page.meters = None
        except (IceCacheError, MemoryError) as error:
            message = render.notice(sentence(error))
        yield {"notice": message, **self.plan(model, n_ctx, budget)}


def model_path(model: str) -> Path:
    """File of a choice of the model list, or of a path that was typed in."""
    model = (model or EMBEDDED).strip()
    return embedded.model_path() if model == EMBEDDED else Path(model).expanduser()


def proposed_n_ctx(path: Path, config: CacheConfig) -> int:
    """Context for a model: what it was trained for, what fits, and not absurdly much."""
    info = read_model_info(path)
    return min(info.n_ctx_train or DEFAULT_N_CTX, largest_n_ctx(info, config), DEFAULT_N_CTX)
