"""The journal's records: one entry for each instance, and the events that wait in the outbox."""

from __future__ import annotations

from msgspec import Struct

from bridge.box.runtimes.process_identity import ProcessIdentity
from bridge.box.state.lifecycle import Life
from bridge.box.state.records import Demand
from bridge.protocol import InstanceEvent, ScaleConfig, Time
from bridge.settings import ServiceConfig


class JournalEntry(Struct, frozen=True, kw_only=True):
    """One instance: everything that a restarted Box needs to take it over.

    - `slot`: its slot; `config`: the config_id it was made with.
    - `service`, `overrides`: the configuration it was made from.
    - `identity`: its process; None before the start.
    - `leaving`: the reason why it must end; empty while it may stay.
    - `failures`: the consecutive failures in its slot before it; its own counts as well once it has
      failed. `retry_at` is when the Box tries the slot again, `failure` why it must.
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
    failure: str = ""

    @property
    def demand(self) -> Demand:
        """The share of its host that the instance needs."""
        usual = Demand.of(self.service.vcpus, self.service.memory_mib)
        return Demand.of(self.overrides.vcpus, self.overrides.memory_mib, usual)


class UnreadableEvent(Struct, frozen=True):
    """A row of the outbox whose event cannot be read, for the `reason`.

    `n` is its place in the outbox, `seq` its Box-Seq, `data` whatever the row holds.
    """

    n: int
    instance: str
    seq: int
    traceparent: str
    data: bytes
    reason: str


class PendingEvent(Struct, frozen=True):
    """An event that the stream has not acknowledged.

    `n` is its place in the outbox, `seq` its Box-Seq, `data` its wire payload.
    """

    n: int
    seq: int
    event: InstanceEvent
    traceparent: str
    data: bytes
