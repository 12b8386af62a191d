"""Reports of instances about themselves on ``box.health``, while they are recent.

An instance knows its load better than a Box that counts connections, and its health better than a
probe. Its report counts for ten samples; after that the Box's own count does. A message costs one
lookup and one decode.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Mapping
from typing import Final

from msgspec import Struct

from bridge.box.runtimes.base import Usage
from bridge.box.state.lifecycle import ENDED
from bridge.bus.core.message import Message
from bridge.errors import ProtocolError
from bridge.observe import Metrics
from bridge.protocol import InstanceHealth, InstanceInfo, decode
from bridge.validation import check_health

FRESH_SAMPLES: Final = 10
_MAX_SIZE: Final = 1024  # bytes; the four fields take a tenth of it
_WHERE: Final = "health"


class SelfReport(Struct, frozen=True, gc=False):
    """The report of an instance, and when it arrived (monotonic seconds)."""

    health: InstanceHealth
    at: float


class SelfReports:
    """The newest report of each of this host's instances.

    `own` are those instances by id, `others` the ids that other hosts report. Every Box receives
    every report, so those of `others` are ignored. A report counts for `fresh` seconds.
    """

    def __init__(
        self,
        metrics: Metrics,
        own: Mapping[str, InstanceInfo],
        others: Container[str],
        fresh: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics = metrics
        self._own = own
        self._others = others
        self._fresh = fresh
        self._clock = clock
        self._reports: dict[str, SelfReport] = {}

    def take(self, message: Message) -> None:
        """Take a report; an invalid one, or one of an unknown instance, is counted and dropped."""
        _, _, service, instance_id = message.subject.rsplit(".", 3)
        info = self._own.get(instance_id)
        if info is None:
            if instance_id not in self._others:
                self._metrics.refuse(_WHERE, "unknown instance")
        elif info.service != service:
            self._metrics.refuse(_WHERE, "another service's instance")
        elif info.state in ENDED:
            self._metrics.refuse(_WHERE, "ended instance")
        elif len(message.data) > _MAX_SIZE:
            self._metrics.refuse(_WHERE, "too large")
        else:
            try:
                health = check_health(decode(InstanceHealth, message.data))
            except ProtocolError:
                self._metrics.refuse(_WHERE, "malformed")
            else:
                self._reports[instance_id] = SelfReport(health, self._clock())

    def of(self, instance_id: str) -> SelfReport | None:
        """The last report of the instance, None if it is too old."""
        report = self._reports.get(instance_id)
        if report is not None and self._clock() - report.at > self._fresh:
            del self._reports[instance_id]
            return None
        return report

    def merge(self, instance_id: str, usage: Usage | None, inflight: int) -> InstanceHealth:
        """The recent report of the instance, completed with measured values."""
        report = self.of(instance_id)
        health = report.health if report else InstanceHealth(inflight_requests=inflight)
        cpu, memory = health.cpu_percent, health.memory_bytes
        return InstanceHealth(
            cpu_percent=usage.cpu_percent if usage and cpu is None else cpu,
            memory_bytes=usage.memory_bytes if usage and memory is None else memory,
            inflight_requests=health.inflight_requests,
        )

    def forget(self, instance_id: str) -> None:
        """The instance has ended."""
        self._reports.pop(instance_id, None)
