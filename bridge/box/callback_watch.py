"""Ends a Box when one of its callbacks fails in the event loop.

The loop itself only logs an exception of a callback (`call_soon`, `call_later`, `add_reader`, the
end of a future), and goes on without what that callback was to do: a Box that no longer sends, or
no longer sees that an instance has ended. A socket whose protocol fails is different: the loop
closes it, and the connection is made again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final

_PACKAGE: Final = f"{__name__.partition('.')[0]}."
_FLOW_CONTROL: Final = ("pause_writing", "resume_writing")  # the socket stays open after these


class CallbackWatch:
    """The first failure of a callback of this package, in the loop that runs now.

    The loop may belong to a program that uses the package as a library. So the loop's handler of
    exceptions is still called, and failures of other code are left to it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._before = loop.get_exception_handler()
        self._failed = asyncio.Event()
        self._failure: BaseException | None = None
        self._active = True

    @classmethod
    @contextlib.contextmanager
    def installed(cls) -> Iterator[CallbackWatch]:
        """A watch that works inside the block."""
        loop = asyncio.get_running_loop()
        watch = cls(loop)
        loop.set_exception_handler(watch._take)
        try:
            yield watch
        finally:
            watch._active = False
            if loop.get_exception_handler() == watch._take:  # else another one calls it
                loop.set_exception_handler(watch._before)

    async def run(self) -> None:
        """Raise the failure of a callback, once there is one."""
        await self._failed.wait()
        assert self._failure is not None
        raise self._failure

    def _take(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if self._before is not None:
            self._before(loop, context)
        else:
            loop.default_exception_handler(context)
        failure = context.get("exception")
        if self._active and self._failure is None and _ends_work(context):
            self._failure = failure
            self._failed.set()


def _ends_work(context: dict[str, Any]) -> bool:
    """Whether a callback of this package has failed, and nothing makes up for that."""
    failure = context.get("exception")
    if not isinstance(failure, Exception):
        return False
    flow_control = any(name in context.get("message", "") for name in _FLOW_CONTROL)
    return ("handle" in context or flow_control) and _is_own(failure.__traceback__)


def _is_own(traceback: TracebackType | None) -> bool:
    """Whether the callback itself is code of this package: the first frame that is not the loop's.

    Other code may call this package and not handle its errors.
    """
    while traceback is not None:
        module = traceback.tb_frame.f_globals.get("__name__", "")
        if not module.startswith("asyncio."):
            return str(module).startswith(_PACKAGE)
        traceback = traceback.tb_next
    return False
