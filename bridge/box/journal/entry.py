"""What the journal keeps: one entry for each instance, and the events that wait in the outbox."""

from __future__ import annotations

from msgspec import Struct

from bridge.box.runtimes.process_identity import ProcessIdentity
from bridge.box.state.lifecycle import Life
from bridge.box.state.records import Demand
from bridge.protocol import InstanceEvent, ScaleConfig, Time
from bridge.settings import ServiceConfig


class JournalEntry(Struct, frozen=True, kw_only=True):
    """One instance: all that is needed to take it back after this process was killed.

    `slot` is its slot, `config` the config_id that it was made with, `service` and `overrides`
    what it was made from. `identity` is its process, None before one was started. `leaving` says
    why it is to go, empty while it is not. `failures` counts those before it in its slot, running;
    once it has failed as well it is one of them, and `retry_at` is when its slot is tried again.
    """

    slot: int
    config: str
    service: ServiceConfig
    overrides: ScaleConfig
    life: Life
    identity: ProcessIdentity | None = None
    port: int = 0
    registered: bool = False
    leaving: str = ""
    failures: int = 0
    retry_at: Time | None = None

    @property
    def demand(self) -> Demand:
        """What the instance is to have of its host."""
        usual = Demand.of(self.service.vcpus, self.service.memory_mib)
        return Demand.of(self.overrides.vcpus, self.overrides.memory_mib, usual)


class PendingEvent(Struct, frozen=True):
    """An event that is not known to be stored: its place in the outbox, its Box-Seq, and `data`,
    the event as it travels.
    """

    n: int
    seq: int
    event: InstanceEvent
    traceparent: str
    data: bytes
