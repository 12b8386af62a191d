"""Reporting once a second what each instance uses and how many requests it has."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from pathlib import Path
from typing import Final

from bridge.box.fleet import stats_report
from bridge.box.fleet.view import FleetView
from bridge.box.runner.context import InstanceContext
from bridge.box.runner.supervisor import Supervisor
from bridge.box.runtimes.logs import prune
from bridge.bus.core.connection import Connection
from bridge.errors import BusError, InstanceError
from bridge.log_limit import LimitedLog, cause_of
from bridge.protocol import HostStats, InstanceState
from bridge.settings import KeepEnded

_log = logging.getLogger(__name__)

_PRUNE_EVERY: Final = 60  # samples


class Sampler:
    """Samples the instances of one host and publishes the report."""

    def __init__(
        self,
        connection: Connection,
        host: str,
        fleet: FleetView,
        supervisor: Supervisor,
        context: InstanceContext,
        data_dir: Path,
        keep: KeepEnded,
        interval: float,
    ) -> None:
        self._connection = connection
        self._host = host
        self._fleet = fleet
        self._supervisor = supervisor
        self._context = context
        self._data_dir = data_dir
        self._keep = keep
        self._interval = interval
        self._limited = LimitedLog(_log)

    async def run(self) -> None:
        """Take a sample every `interval` seconds until cancelled."""
        loop = asyncio.get_running_loop()
        due, count = loop.time(), 0
        while True:
            due = max(due + self._interval, loop.time())
            await asyncio.sleep(due - loop.time())
            count += 1
            try:
                await self._sample()
                for instance_id in await self._context.runtime.sweep():
                    _log.warning("%s left processes behind; they were ended", instance_id)
            except InstanceError as exc:  # the next sample is due in a moment
                self._limited.report(cause_of(exc), "the load of instances is unknown: %s", exc)
            if count % _PRUNE_EVERY == 0:
                living = [instance.id for instance in self._supervisor.instances()]
                await asyncio.to_thread(prune, self._data_dir, living, self._keep)

    async def _sample(self) -> None:
        measured = [item for item in self._supervisor.instances() if item.handle is not None]
        usage = await self._context.runtime.usage([item.handle for item in measured if item.handle])
        inflight = await self._context.inflight.counts()
        report: HostStats = {}
        for instance in measured:
            handle = instance.handle
            if handle is not None:  # it may have ended while the others were measured
                requests = inflight[handle.port]
                report[instance.id] = instance.sample(usage.get(instance.id), requests)
        parts = list(stats_report.messages(report, self._connection.max_payload))
        self._fleet.set_stats(self._host, report, parts[0][0] if len(parts) == 1 else b"")
        with contextlib.suppress(BusError):  # sent at most once: the next sample replaces it
            for data, headers in parts:
                subject = self._connection.subjects.stats(self._host)
                self._connection.publish(subject, data, headers=headers)
        self._gauge()

    def _gauge(self) -> None:
        counts = Counter(
            (item.life.info.service, item.life.info.state) for item in self._supervisor.instances()
        )
        gauge = self._connection.metrics.instances
        gauge.clear()
        for (service, state), number in counts.items():
            assert isinstance(state, InstanceState)
            gauge.labels(service, str(state)).set(number)
