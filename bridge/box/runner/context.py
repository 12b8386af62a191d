"""What the instances of one host share: runtime, prober, counters, clock."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from msgspec import Struct

from bridge.box.runner.inflight import InflightCounter
from bridge.box.runner.probes import Prober
from bridge.box.runner.self_reports import SelfReports
from bridge.box.runtimes.base import Runtime
from bridge.protocol import (
    InstanceInfo,
)


class InstanceContext(Struct, frozen=True, kw_only=True):
    """What all instances of one host share. `see` is told each change of an instance at once."""

    runtime: Runtime
    prober: Prober
    traffic: InflightCounter
    reports: SelfReports
    address: str
    idle_samples: int
    clock: Callable[[], datetime]
    see: Callable[[InstanceInfo], None]
