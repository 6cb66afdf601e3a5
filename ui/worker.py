"""Worker: the one thread in which everything that touches the model runs, job after job."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .events import Event, Reading, Stopped


class Worker:
    """Runs jobs in their order; those of a tab report events and can be stopped."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "icecache-model")
        self._stop = threading.Event()
        self._owner: str | None = None
        self._started = 0.0
        self.emit: Callable[[Event], None] = lambda event: None

    @property
    def busy(self) -> bool:
        """Whether a job that can be stopped is running."""
        return self._owner is not None

    @property
    def is_stopped(self) -> bool:
        """Whether the running job should end."""
        return self._stop.is_set()

    def stop(self, owner: str) -> None:
        """End the running job if it is `owner`'s."""
        if self._owner == owner:
            self._stop.set()

    def later(self, job: Callable[..., None], *args: Any) -> None:
        """Run a job when those before it are done."""
        self._pool.submit(job, *args)

    def wait_for(self, job: Callable[..., None], *args: Any) -> None:
        """Run a job when those before it are done; raise what it raises."""
        self._pool.submit(job, *args).result()

    def events(self, owner: str, job: Callable[[], None]) -> Iterator[Event]:
        """Run a job of `owner`; yield what it emits, raise what it raises."""
        events: queue.Queue[Event | None] = queue.Queue()

        def run() -> None:
            self._stop.clear()
            self._owner, self.emit, self._started = owner, events.put, time.perf_counter()
            try:
                job()
            finally:
                self._owner = None
                events.put(None)

        future = self._pool.submit(run)
        try:
            while (event := events.get()) is not None:
                yield event
        except GeneratorExit:  # the browser has gone
            self.stop(owner)
            raise
        future.result()

    def progress(self, done: int, total: int) -> None:
        """Report how much of a text has been read.

        Raises
        ------
        Stopped
            The job should end, and there is more to read.
        """
        self.emit(Reading(done, total, time.perf_counter() - self._started))
        if self.is_stopped and done < total:
            raise Stopped
