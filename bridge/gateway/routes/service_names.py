"""The services under which each instance id was seen: one, unless a sender is wrong. Pure.

A table of 100,000 instances has few services, so that their ids share the tuples.
"""

from __future__ import annotations

from typing import Final

_SHARED: Final = 2_000  # names of services whose tuples are shared


class ServiceNames:
    """The services by instance id."""

    def __init__(self) -> None:
        self._by_id: dict[str, tuple[str, ...]] = {}
        self._single: dict[str, tuple[str, ...]] = {}

    def __contains__(self, instance_id: str) -> bool:
        return instance_id in self._by_id

    def of(self, instance_id: str) -> tuple[str, ...]:
        """The services of an instance id."""
        return self._by_id.get(instance_id, ())

    def add(self, service: str, instance_id: str) -> None:
        """The id was seen under `service`."""
        single = self._single.get(service) or self._only(service)
        known = self._by_id.setdefault(instance_id, single)
        if known is not single and service not in known:
            self._by_id[instance_id] = (*known, service)

    def remove(self, service: str, instance_id: str) -> None:
        """The table forgets the id under `service`."""
        others = tuple(name for name in self._by_id[instance_id] if name != service)
        if others:
            self._by_id[instance_id] = others
        else:
            del self._by_id[instance_id]

    def _only(self, service: str) -> tuple[str, ...]:
        if len(self._single) >= _SHARED:  # services may come under ever new names
            self._single.clear()
        return self._single.setdefault(service, (service,))
