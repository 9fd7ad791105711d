"""Orbax without what it says beside our own line when files are damaged."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from contextvars import Context
from typing import Any


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that lets pass what comes after the first error.

    Orbax reads all arrays at once, raises the first error and closes its loop. Threads that still
    read then find it closed, and each would print a traceback; so would each further array that
    failed, whenever its future is thrown away.
    """

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if "never retrieved" not in context.get("message", ""):
            super().call_exception_handler(context)

    def call_soon_threadsafe(
        self, callback: Callable[..., object], *args: object, context: Context | None = None
    ) -> asyncio.Handle:
        try:
            return super().call_soon_threadsafe(callback, *args, context=context)  # pyrefly: ignore
        except RuntimeError:
            if not self.is_closed():
                raise
            return asyncio.Handle(callback, args, self, context)


class _Policy(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return _Loop()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Holds back orbax's log and the tracebacks of its threads: what fails is our one line."""
    logger = logging.getLogger("absl")
    level, policy = logger.level, asyncio.get_event_loop_policy()
    logger.setLevel(logging.CRITICAL)
    asyncio.set_event_loop_policy(_Policy())
    try:
        yield
    finally:
        asyncio.set_event_loop_policy(policy)
        logger.setLevel(level)
