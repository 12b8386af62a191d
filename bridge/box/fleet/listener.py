"""What follows the fleet's changes, as a FleetView reports them."""

from __future__ import annotations

from collections.abc import Iterable

from bridge.box.state.records import HostOrder, ServiceRecord, SlotRecord


class FleetListener:
    """Base of classes that follow the fleet's changes; override what is needed. Must not block."""

    def service_changed(self, service: str, record: ServiceRecord | None) -> None:
        """The service's record was written; None if the store no longer has one."""

    def order_changed(self, host: str, order: HostOrder | None) -> None:
        """The order for `host` was written; None if the store no longer has one."""

    def host_changed(self, host: str) -> None:
        """The record of `host` was changed, not only renewed, or deleted."""

    def slot_owner_changed(
        self, service: str, slot: int, before: SlotRecord | None, claim: SlotRecord | None
    ) -> None:
        """Another host claims the slot, or its claim appeared or disappeared."""

    def plan_needed(self, services: Iterable[str] | None) -> None:
        """The plans of these services may have changed; None means of all services."""
