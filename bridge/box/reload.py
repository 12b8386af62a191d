"""Taking over a changed configuration of services, without a restart of the Box.

Services are added, changed and removed; nothing else is touched. A configuration with a mistake
changes nothing, and its problem is an alert of this host until a reload succeeds.

The instances of a changed service are replaced as by a rollout, because the offer of this host then
names other settings than their slot records. The instances of a removed service drain. Its target
becomes 0 if no other live host offers it, which is retried while the bus is out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import asdict, replace

from bridge.box.components import Components
from bridge.box.fleet.host_record import offers
from bridge.box.runtimes.process.programs import launch_problems
from bridge.box.scheduler import rollout
from bridge.box.scheduler.retirement import retired
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.records import ServiceRecord
from bridge.errors import BusError, ConfigError
from bridge.settings import Config

_log = logging.getLogger(__name__)

_RETRY: Final = 1.0  # seconds between attempts to end a removed service


class Changes(Struct, frozen=True, kw_only=True):
    """What differs between two configurations of a Box.

    `added`, `changed` and `removed` are services; `changed` maps each to the keys that differ.
    `restart` names the other settings that differ: they apply when the Box is started again.
    """

    added: list[str]
    changed: dict[str, list[str]]
    removed: list[str]
    restart: list[str]

    def __str__(self) -> str:
        parts = [f"{name} added" for name in self.added]
        parts += [f"{name} changed ({', '.join(keys)})" for name, keys in self.changed.items()]
        parts += [f"{name} removed" for name in self.removed]
        if self.restart:
            parts.append(f"restart this Box to apply {', '.join(self.restart)}")
        return "; ".join(parts) or "nothing changed"


def compare(before: Config, after: Config) -> Changes:
    """What has changed from `before` to `after`."""
    old, new = before.services, after.services
    tables = (
        ("box", asdict(before.box), asdict(after.box)),
        ("nats", asdict(before.nats), asdict(after.nats)),
        ("timing", asdict(before.timing), asdict(after.timing)),
    )
    return Changes(
        added=sorted(new.keys() - old.keys()),
        changed={
            name: _differing(asdict(old[name]), asdict(new[name]))
            for name in sorted(new.keys() & old.keys())
            if old[name] != new[name]
        },
        removed=sorted(old.keys() - new.keys()),
        restart=[f"[{table}] {key}" for table, was, now in tables for key in _differing(was, now)],
    )


def _differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    return [key for key in before if before[key] != after[key]]


def check(config: Config) -> None:
    """Raise ConfigError for a service that this host could not start."""
    offers(config)
    if problems := [f"{place}: {problem}" for place, problem in launch_problems(config)]:
        raise ConfigError("configuration", "; ".join(problems))


class Reloader:
    """Applies changed services to a running Box. `problem` is why the last reload failed.

    `run` works until cancelled: it ends removed services whose end could not be stored yet.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.problem = ""
        self._components: Components | None = None
        self._ending: dict[str, None] = {}
        self._wake = asyncio.Event()

    def blocker(self) -> str | None:
        """Why the file is not in effect, for the alerts of this host."""
        return self.problem or None

    def attach(self, components: Components) -> None:
        """The Box is ready: apply changes to these components from now on."""
        self._components = components

    async def reload(self, source: Callable[[], Config]) -> Changes:
        """Apply the services of the configuration that `source` loads.

        Raises ConfigError, and changes nothing, if it is wrong, or if the Box is not ready yet.
        """
        try:
            return await self._apply(await asyncio.to_thread(source))
        except ConfigError as exc:
            self.problem = f"the configuration was not reloaded: {exc}"
            _log.error("nothing was reloaded: %s", exc)
            raise

    async def _apply(self, wanted: Config) -> Changes:
        components = self._components
        if components is None:
            raise ConfigError("reload", "this Box is still starting: try again")
        changes = compare(self.config, wanted)
        config = replace(self.config, services=wanted.services)
        check(config)
        offered = offers(config, components.resources.runtime.lacks)
        self.config, self.problem = config, ""
        _log.info("configuration reloaded: %s", changes)
        for service in config.services:
            self._ending.pop(service, None)
        self._ending.update(dict.fromkeys(changes.removed))
        components.runner.supervisor.offer(config.services)
        try:
            await components.fleet.lease.offer(offered)
        except BusError as exc:
            _log.warning("the changed services are published with the next renewal: %s", exc)
        for service in changes.changed:
            await self._resume(components, service)
        self._wake.set()
        return changes

    async def run(self) -> None:
        """Lower the target of removed services to 0, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            for service in list(self._ending):
                if await self._end(service):
                    self._ending.pop(service, None)
            if self._ending:
                self._wake.set()
                await asyncio.sleep(_RETRY)

    async def _end(self, service: str) -> bool:
        """Whether nothing is left to do for the target of a removed service."""
        components = self._components
        assert components is not None, "woken by a reload"

        def change(fleet: FleetState) -> ServiceRecord | None:
            me, clock = components.resources.me, components.resources.clock
            return retired(service, fleet, at=clock(), host=me.host)

        if service in self.config.services:
            return True
        if await components.fleet.decisions.amend(service, change):
            _log.info("%s is at 0: no host offers it any more", service)
            return True
        view = components.fleet.view
        return view.blocker() is None and change(view.state) is None

    async def _resume(self, components: Components, service: str) -> None:
        """Resume a rollout that has stopped: the new settings may cure it."""

        def change(fleet: FleetState) -> ServiceRecord | None:
            me, clock = components.resources.me, components.resources.clock
            why = f"the changed configuration of {me.host}"
            return rollout.resume(service, fleet, why, at=clock(), host=me.host)

        await components.fleet.decisions.amend(service, change)
