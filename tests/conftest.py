"""Fixtures: models written once per run, and factories of stock and icecache contexts."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest
from emulated_gpu import EmulatedGpu, build_kernels
from induction_model import write_induction_model
from llama_cpp import Llama
from tiny_models import TinySpec, write_model

from icecache_local import CacheConfig, IceLlama

LONG = ("slow", "nightly")  # kinds of tests that run only with the option of that name


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add an option for each of the long kinds of tests."""
    for name in LONG:
        parser.addoption(f"--{name}", action="store_true", help=f"also run the tests marked {name}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip long tests unless they are asked for."""
    for name in LONG:
        if not config.getoption(f"--{name}"):
            for item in items:
                if item.get_closest_marker(name):
                    item.add_marker(pytest.mark.skip(reason=f"{name}: run with --{name}"))


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded generator, the same for every test."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[TinySpec], Path]:
    """A factory of random models; each spec is written once per run."""
    folder = tmp_path_factory.mktemp("tiny")

    def path_of(spec: TinySpec) -> Path:
        path = folder / spec.filename
        return path if path.exists() else write_model(path, spec)

    return path_of


@pytest.fixture(scope="session")
def induction_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hand-built retrieval model."""
    return write_induction_model(tmp_path_factory.mktemp("induction") / "induction.gguf")


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The CUDA kernels, compiled for this processor."""
    if platform.machine() != "x86_64":
        pytest.skip("the emulation converts f16 by instructions of x86")
    return build_kernels(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(params=[False, True], ids=["eager", "lazy"])
def gpu(request: pytest.FixtureRequest, kernels: ctypes.CDLL) -> EmulatedGpu:
    """A card on the CPU, whose work runs at once or as late as it may."""
    return EmulatedGpu(kernels, request.param)


@pytest.fixture
def open_stock() -> Iterator[Callable[..., Llama]]:
    """A factory of stock contexts, closed at the end of the test."""
    with ExitStack() as stack:

        def opened(
            path: Path,
            n_ctx: int = 2048,
            n_batch: int = 512,
            logits_all: bool = False,
            n_threads: int = 1,  # llama.cpp's threads spin: more are slow on a busy machine
            flash_attn: bool = True,
        ) -> Llama:
            llm = Llama(
                str(path),
                n_ctx=n_ctx,
                n_batch=n_batch,
                logits_all=logits_all,
                flash_attn=flash_attn,
                n_threads=n_threads,
                n_threads_batch=n_threads,
                verbose=False,
            )
            return stack.enter_context(closing(llm))

        yield opened


@pytest.fixture
def open_ice() -> Iterator[Callable[..., IceLlama]]:
    """A factory of icecache contexts, closed at the end of the test."""
    with ExitStack() as stack:

        def opened(
            path: Path,
            n_ctx: int = 2048,
            n_batch: int = 512,
            logits_all: bool = False,
            n_threads: int = 1,
            cache: CacheConfig | None = None,
        ) -> IceLlama:
            llm = IceLlama(
                str(path),
                n_ctx=n_ctx,
                n_batch=n_batch,
                logits_all=logits_all,
                cache=cache,
                n_threads=n_threads,
                n_threads_batch=n_threads,
                verbose=False,
            )
            return stack.enter_context(closing(llm))

        yield opened
