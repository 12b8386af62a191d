"""The endpoint `box.logs.<host>`: parts of the logs of this host's instances.

Readers ask for each part, so a Box keeps nothing for a reader. It reads two parts at a time at
most, which bounds its memory however many readers there are. It answers also while it is not ready.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final, Protocol

from bridge.box.api.replies import refusal_of, refused_logs
from bridge.box.runtimes.base import Runtime
from bridge.box.runtimes.log_pages import MOST_MARKS, read_files, read_rows
from bridge.box.state.lifecycle import Life
from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.service.endpoint import Endpoint, Reply
from bridge.errors import EngineSilent, InstanceError, NameRefused, ProtocolError
from bridge.log_protocol import LogChunk, LoggedInstance, LogRead, LogsRequest, LogsResponse
from bridge.protocol import decode, encode
from bridge.reply_codes import Refusal, ReplyCode
from bridge.subjects import check_name

_MOST: Final = 256 * 1024  # bytes of logs in one reply
_LEAST: Final = 1024  # bytes that must be left for one more part
_CONCURRENT: Final = 2  # replies that are read at once
_LISTED: Final = 5000  # instances in one reply
_MARK: Final = 40  # bytes of a mark in a reply


class LivingOne(Protocol):
    """An instance of this host that has not ended."""

    @property
    def id(self) -> str:
        """Its id."""

    @property
    def life(self) -> Life:
        """The instance as it is now."""


class LogsApi:
    """See the module. `root` has a directory for each instance of `host`; `find` and `living` give
    those that have not ended.
    """

    def __init__(
        self,
        connection: Connection,
        host: str,
        runtime: Runtime,
        find: Callable[[str], LivingOne | None],
        living: Callable[[], Iterable[LivingOne]],
        root: Path,
    ) -> None:
        self._connection = connection
        self._subject = connection.subjects.logs(host)
        self._runtime = runtime
        self._find = find
        self._living = living
        self._root = root
        self._turns = asyncio.Semaphore(_CONCURRENT)

    def endpoints(self) -> list[Endpoint]:
        """The endpoint, for a Responder. A NATS user of an older version may not have it."""
        return [
            Endpoint(
                name="logs",
                subject=self._subject,
                queue=self._connection.subjects.queue,
                handle=self._answer,
                refuse=refused_logs,
                optional=True,
            )
        ]

    async def _answer(self, message: Message) -> Reply:
        try:
            request = decode(LogsRequest, message.data or b"{}")
            async with self._turns:
                response = await self._respond(request)
        except (ProtocolError, NameRefused) as exc:
            return refused_logs(refusal_of(exc))
        except EngineSilent as exc:
            return refused_logs(Refusal(ReplyCode.NOT_READY, str(exc)))
        except InstanceError as exc:
            return refused_logs(Refusal(ReplyCode.INTERNAL_ERROR, str(exc)))
        return Reply(data=encode(response))

    async def _respond(self, request: LogsRequest) -> LogsResponse:
        instances: list[LoggedInstance] = []
        if request.name:
            name = check_name("name", request.name)
            living = {one.id: one.life.info.service for one in self._living()}
            instances = await asyncio.to_thread(_list_instances, self._root, name, living)
        chunks, left = list[LogChunk](), self._limit()
        for read in request.reads:
            if left < _LEAST:
                break
            chunk = await self._read(read, left)
            chunks.append(chunk)
            left -= len(chunk.data) + len(chunk.marks) * _MARK * 3 // 4
        return LogsResponse(instances=instances[:_LISTED], chunks=chunks)

    def _limit(self) -> int:
        """The bytes of logs that fit into a reply, as base64 and with their marks."""
        marks = MOST_MARKS * _MARK
        return max(_LEAST, min(_MOST, (self._connection.max_payload - marks) // 2))

    async def _read(self, read: LogRead, limit: int) -> LogChunk:
        directory = self._root / check_name("instance id", read.instance_id)
        # Whether it lives is looked up before its log is read: then nothing comes after the last
        # part of one that has ended.
        ended = self._find(read.instance_id) is None
        log = None if ended else await self._runtime.engine_log(read.instance_id, read)
        now = time.time_ns()
        if log is not None:
            return read_rows(log.output, read, limit, now, timed=log.timed, ended=False)
        return await asyncio.to_thread(read_files, directory, read, limit, now, ended=ended)


def _list_instances(root: Path, name: str, living: Mapping[str, str]) -> list[LoggedInstance]:
    """The instance `name`, or those of the service `name`; `living` has services by instance."""
    ended = {
        path.name: path.name.rpartition("-")[0]
        for path in (root.iterdir() if root.is_dir() else ())
        if path.name not in living
    }
    return [
        LoggedInstance(id=instance_id, ended=instance_id not in living)
        for instance_id, service in sorted((ended | {**living}).items())
        if name in (instance_id, service)
    ]
