"""What the instances of a host are made from: its configuration, and what requests may name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from msgspec import Struct

from bridge.box.journal.entry import JournalEntry
from bridge.box.runner.context import InstanceContext
from bridge.box.runtimes.base import Spec
from bridge.box.scheduler import on_request
from bridge.box.state.records import ServiceRecord
from bridge.images import admits
from bridge.settings import ServiceConfig, Timing


class InstanceSpecs(Struct, frozen=True, kw_only=True):
    """What instances are made from on this host. `images` are the patterns of those that requests
    may name.
    """

    services: Mapping[str, ServiceConfig]
    images: Collection[str]
    around: InstanceContext
    instances_dir: Path
    cwd: Path
    fence: Path
    timing: Timing

    def config_of(self, service: str, record: ServiceRecord) -> ServiceConfig | None:
        """How an instance of the service is made here; None if this host does not."""
        return self.services.get(service) or on_request.made_from(record)

    def still_makes(self, entry: JournalEntry, record: ServiceRecord | None) -> bool:
        """Whether this host goes on with an instance of its last life; a missing record is no
        order.
        """
        if entry.life.info.service in self.services:
            return True
        asked_for = record is None or record.on_request
        return asked_for and admits(self.images, entry.service.image)

    def spec(self, entry: JournalEntry) -> Spec:
        """All that makes the instance."""
        info = entry.life.info
        return Spec.of(
            info.id,
            info.service,
            entry.service,
            entry.overrides,
            slot=entry.slot,
            directory=self.instances_dir / info.id,
            cwd=self.cwd,
            fence=self.fence,
        )
