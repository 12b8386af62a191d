"""Observability of a process: log lines on stderr, and Prometheus metrics.

No message is refused, dropped or retried silently: each such case counts in `Metrics`. The metrics
of a Box can be scraped (``[box] metrics = "host:port"``); `nats micro stats` shows a part of them.
"""

from __future__ import annotations

import functools
import logging
import sys
from datetime import UTC, datetime
from typing import Final

from msgspec import Struct
from prometheus_client import CollectorRegistry, Counter, Gauge

from bridge.errors import ConfigError
from bridge.metrics_port import serve_registry
from bridge.printable import indented, printable
from bridge.protocol import encode, format_time

_LOOPBACK: Final = "127.0.0.1"
LEVELS: Final = ("debug", "info", "warning", "error")


class Metrics:
    """The counters and gauges of one process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter = functools.partial(Counter, registry=self.registry)
        gauge = functools.partial(Gauge, registry=self.registry)
        self.refused = counter(
            "box_bridge_refused",
            "Messages refused without a reply, and unreadable records: where, and the reason.",
            ["where", "reason"],
        )
        self.requests = counter(
            "box_bridge_requests",
            "Answered requests, by endpoint and outcome: accepted, capped, refused or ok.",
            ["endpoint", "outcome"],
        )
        self.bus = counter(
            "box_bridge_bus_events",
            "Events of the NATS connection, by kind: connected, disconnected, resync, error, …",
            ["kind"],
        )
        self.events = counter(
            "box_bridge_events_stored", "Instance events that the stream has acknowledged."
        )
        self.instances = gauge(
            "box_bridge_instances",
            "Instances on this host, by service and state.",
            ["service", "state"],
        )
        self.backlog = gauge(
            "box_bridge_backlog_events",
            "Instance events in the journal that the stream has not stored yet.",
        )
        self.rejected = gauge(
            "box_bridge_rejected_events",
            "Instance events that can never be stored, and are kept in the journal for inspection.",
        )
        self.backlog_age = gauge(
            "box_bridge_backlog_age_seconds",
            "Age of the oldest event that the stream has not stored yet; 0 if there is none.",
        )
        self.certificate_expiry = gauge(
            "box_bridge_certificate_expiry_timestamp_seconds",
            "When the TLS certificate of the NATS server, or of this client, expires.",
            ["certificate"],
        )
        self.ready = gauge("box_bridge_ready", "1 while this Box answers scale requests, else 0.")

        self.reload_failed = Gauge(
            "box_bridge_reload_failed",
            "1 after a reload of the configuration that failed and changed nothing, else 0.",
            registry=self.registry,
        )

    def refuse(self, where: str, reason: str) -> None:
        """Count one refused message."""
        self.refused.labels(where, printable(reason)).inc()

    def count(self, kind: str) -> None:
        """Count one event of the NATS connection."""
        self.bus.labels(kind).inc()

    def refusals(self) -> dict[str, int]:
        """How many messages were refused, by ``where: reason``."""
        return {
            f"{sample.labels['where']}: {sample.labels['reason']}": int(sample.value)
            for metric in self.refused.collect()
            for sample in metric.samples
            if sample.name.endswith("_total")
        }

    def serve(self, address: str, *, token: str = "") -> None:
        """Serve ``/metrics`` on `address` (``host:port``, or ``:port`` on 127.0.0.1) from a daemon
        thread, to scrapes with the bearer `token` alone if there is one.

        Raises ConfigError if it cannot be bound.
        """
        host, _, port = address.rpartition(":")
        try:
            serve_registry(self.registry, host.strip("[]") or _LOOPBACK, int(port), token)
        except (OSError, ValueError, OverflowError) as exc:  # a port, or a name, that is malformed
            raise ConfigError("[box] metrics", f"cannot listen on {address}: {exc}") from exc


class _LogLine(Struct, kw_only=True, omit_defaults=True):
    time: str
    level: str
    logger: str
    message: str
    exception: str = ""


class _TextFormatter(logging.Formatter):
    """Times are local with their offset, as what the command line prints is local.

    A message is one line, and the lines of a traceback are indented: a peer cannot forge a line.
    """

    def format(self, record: logging.LogRecord) -> str:
        message = printable(record.getMessage())
        line = f"{self.formatTime(record)} {record.levelname:<7} {message}"
        if record.exc_info:
            line += indented(f"\n{self.formatException(record.exc_info)}")
        return line

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        at = datetime.fromtimestamp(record.created).astimezone()
        return at.isoformat(timespec="milliseconds")


class _JsonFormatter(logging.Formatter):
    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        return format_time(datetime.fromtimestamp(round(record.created, 3), UTC))

    def format(self, record: logging.LogRecord) -> str:
        line = _LogLine(
            time=self.formatTime(record),
            level=record.levelname.lower(),
            logger=record.name,
            message=printable(record.getMessage()),
            exception=(
                printable(self.formatException(record.exc_info), lines=True)
                if record.exc_info
                else ""
            ),
        )
        return encode(line).decode()


def configure_logging(level: str = "info", style: str = "text") -> None:
    """Send log records of `level` and above to stderr, as text or as one JSON object a line.

    Raises ConfigError for a level or style that does not exist.
    """
    if level not in LEVELS:
        raise ConfigError("BOX_BRIDGE_LOG", f"{level!r} is not one of {', '.join(LEVELS)}")
    if style not in ("text", "json"):
        raise ConfigError("BOX_BRIDGE_LOG_FORMAT", f"{style!r} is not one of text, json")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if style == "json" else _TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("nats", "stamina"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the bus logs what matters
