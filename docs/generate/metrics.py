"""The metrics reference, from the counters and gauges that `bridge.observe` registers."""

from __future__ import annotations

from typing import Final

from prometheus_client.metrics import MetricWrapperBase

from bridge.observe import Metrics
from docs.generate.markdown import table

_INTRODUCTION: Final = """\
# Metrics

A Box with `[box] metrics = "host:port"` serves these metrics at `/metrics`, for Prometheus.

Nothing is refused, dropped or retried silently: each place that does so counts here.
`nats micro stats box` shows the same counts of requests.

"""


def page() -> str:
    """The whole page."""
    head = ["metric", "type", "labels", "meaning"]
    return _INTRODUCTION + table(head, (_row(metric) for metric in metrics()))


def metrics() -> list[MetricWrapperBase]:
    """Each metric of a process."""
    found = vars(Metrics()).values()
    return [metric for metric in found if isinstance(metric, MetricWrapperBase)]


def _row(metric: MetricWrapperBase) -> list[str]:
    [family] = metric.describe()
    suffix = "_total" if family.type == "counter" else ""
    labels = ", ".join(f"`{label}`" for label in metric._labelnames)  # noqa: SLF001
    return [f"`{family.name}{suffix}`", family.type, labels, family.documentation]
