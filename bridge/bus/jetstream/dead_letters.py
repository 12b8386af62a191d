"""The stream of dead letters: events that could not be delivered, kept for an operator to read.

A relay creates it, not a Box. A full stream refuses new messages (`discard: new`) instead of
deleting its oldest, so the relay retries and reports that.
"""

from __future__ import annotations

from typing import Final

from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from bridge.bus.core.connection import Connection
from bridge.bus.jetstream.topology import DAY, api_level, ensure_stream
from bridge.subjects import Subjects

WINDOW: Final = DAY
"""Seconds for which the stream recognises a dead letter that is stored again."""

_MAX_AGE: Final = 30 * DAY
_MAX_BYTES: Final = 256 * 1024**2  # the server reserves them
_MAX_SIZE: Final = 128 * 1024  # an event of 64 KiB, and its headers


def dead_stream(subjects: Subjects, *, replicas: int = 1) -> StreamConfig:
    """The stream's settings: 30 days, 256 MiB, in files. An operator may raise each."""
    return StreamConfig(
        name=subjects.dead_stream,
        description="box-bridge: events that a relay could not deliver",
        subjects=[subjects.all_dead],
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        discard=DiscardPolicy.NEW,
        max_age=_MAX_AGE,
        max_bytes=_MAX_BYTES,
        max_msgs=-1,
        max_msgs_per_subject=-1,
        max_msg_size=_MAX_SIZE,
        duplicate_window=WINDOW,
        num_replicas=replicas,
        allow_direct=True,
        allow_rollup_hdrs=False,
    )


async def ensure_dead_stream(connection: Connection) -> None:
    """Create the stream if it is missing. Raises as `topology.ensure` does."""
    await api_level(connection)
    wanted = dead_stream(connection.subjects, replicas=connection.settings.replicas)
    await ensure_stream(connection, wanted)
