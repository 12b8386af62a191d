"""What the instances of one host share: the runtime, the prober, the counters, the clock."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from msgspec import Struct

from bridge.box.runner.inflight import InflightCounter
from bridge.box.runner.probes import Prober
from bridge.box.runner.self_reports import SelfReports
from bridge.box.runtimes.base import Runtime
from bridge.protocol import InstanceInfo


class InstanceContext(Struct, frozen=True, kw_only=True):
    """Shared by all instances of one host. `on_change` receives each change of an instance at once.

    `address` is where instances serve, `idle_samples` after how many samples one is Ready again.
    """

    runtime: Runtime
    prober: Prober
    inflight: InflightCounter
    reports: SelfReports
    address: str
    idle_samples: int
    clock: Callable[[], datetime]
    on_change: Callable[[InstanceInfo], None]
