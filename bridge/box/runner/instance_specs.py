"""What the instances of a host are created from: its configuration, and images from requests."""

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
    """See the module. `images` are patterns of the images that requests may name."""

    services: dict[str, ServiceConfig]
    images: Collection[str]
    context: InstanceContext
    instances_dir: Path
    cwd: Path
    fence: Path
    timing: Timing
    credentials: str = ""

    def offer(self, services: Mapping[str, ServiceConfig]) -> None:
        """Create instances of these services from now on, and of no others."""
        self.services.clear()
        self.services.update(services)

    def config_of(self, service: str, record: ServiceRecord) -> ServiceConfig | None:
        """How this host creates an instance of the service; None if it does not."""
        return self.services.get(service) or on_request.made_from(record)

    def may_stay(self, entry: JournalEntry, record: ServiceRecord | None) -> bool:
        """Whether an instance may stay, after a start or a reload of the configuration.

        A missing service record is no reason to end it.
        """
        if entry.life.info.service in self.services:
            return True
        requested = record is None or record.on_request
        return requested and admits(self.images, entry.service.image)

    def spec(self, entry: JournalEntry) -> Spec:
        """The runtime's specification of the instance."""
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
            credentials=self.credentials,
        )
