"""The errors of a request to the fleet, and of a route lookup.

They belong to the `BridgeError` tree that `bridge.errors` draws. Each carries its data as
attributes, and its message says what to do.
"""

from __future__ import annotations

from collections.abc import Mapping

from bridge.admin_protocol import Answer
from bridge.errors import BridgeError
from bridge.protocol import ScaleResponse


class NoRoute(BridgeError):
    """No instance of `service` takes traffic, as far as the route table knows.

    `stale_for` is for how many seconds the table has not been current; 0 if it is.

    Fix: look at `box-bridge ps`, or wait with `RouteTable.wait_ready`.
    """

    def __init__(self, service: str, stale_for: float = 0.0) -> None:
        stale = f"; cut off from NATS for {stale_for:.1f} s" if stale_for else ""
        super().__init__(
            f"no instance of {service} takes traffic{stale}: "
            f"see `box-bridge ps {service}`, or wait with wait_ready()"
        )
        self.service = service
        self.stale_for = stale_for


class ScaleError(BridgeError):
    """The root of the errors of a request to the fleet.

    `code` is the code of the Box's reply (see `bridge.reply_codes.ReplyCode`); None if there was no
    reply, or if an older Box sent no code.

    Fix: see the subclass: it says whether anything was changed.
    """

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


class NoBoxError(ScaleError):
    """No Box answers on the subject. Nothing was changed.

    `problem` names what is missing, if that is known.

    Fix: start a Box with `box-bridge box`; check the NATS URL and the prefix.
    """

    def __init__(self, subject: str, *, problem: str = "") -> None:
        cure = "start one with `box-bridge box`, or check the NATS URL and the prefix"
        super().__init__(problem or f"no Box answers on {subject}: {cure}")
        self.subject = subject
        self.problem = problem


class RequestTimeout(ScaleError):
    """No Box answered in time. The outcome is unknown, unless the request `changes` nothing.

    Fix: send it again with the same `request_id`: it has one effect, however often it is sent.
    """

    def __init__(
        self, subject: str, timeout: float, request_id: str = "", *, changes: bool = True
    ) -> None:
        again = f" Ask again with request id {request_id}: it has one effect." if request_id else ""
        unknown = f": the outcome is unknown.{again}" if changes else "; ask again"
        super().__init__(f"no answer on {subject} within {timeout:g} s{unknown}")
        self.subject = subject
        self.timeout = timeout
        self.request_id = request_id


class ScaleRefused(ScaleError):
    """A Box refused the request. Nothing was changed; `response` is its answer.

    Fix: follow the sentence in `response.error`.
    """

    def __init__(self, response: ScaleResponse, code: str | None = None) -> None:
        super().__init__(response.error or "refused without a reason", code)
        self.response = response


class ScaleCapped(ScaleError):
    """A Box accepted a lower target than the request asked for; `response` holds the counts.

    Fix: add hosts or raise `max_instances`, or ask for less.
    """

    def __init__(self, response: ScaleResponse, code: str | None = None) -> None:
        super().__init__(response.error or f"capped to {response.target_replicas} instances", code)
        self.response = response


class WaitTimeout(ScaleError):
    """The request was accepted, but the instances were not Ready in time.

    `ready` of `wanted` were. `last_failure` is the message of the newest failure, if any; `lacks`
    is what the fleet reports as missing, and why.

    Fix: look at `box-bridge services`, `events` and `logs`; the target stays in force.
    """

    def __init__(
        self,
        service: str,
        ready: int,
        wanted: int,
        timeout: float,
        last_failure: str = "",
        lacks: str = "",
    ) -> None:
        why = f" {lacks}." if lacks else ""
        why += f" Last failure: {last_failure}" if last_failure else ""
        super().__init__(f"{service}: {ready} of {wanted} Ready after {timeout:g} s.{why}")
        self.service = service
        self.ready = ready
        self.wanted = wanted
        self.timeout = timeout
        self.last_failure = last_failure
        self.lacks = lacks


class OrderRefused(ScaleError):
    """A Box refused an operator's order or query. Nothing was changed.

    `response` is its answer.

    Fix: follow the sentence in `response.error`.
    """

    def __init__(self, response: Answer, code: str | None = None) -> None:
        super().__init__(response.error or "refused without a reason", code)
        self.response = response


class DrainStuck(ScaleError):
    """A host is being drained, but the replacements fail; `stuck` gives the reason by service.

    Fix: repair the service and drain again, or take the order back with `uncordon`.
    """

    def __init__(self, host: str, left: int, stuck: Mapping[str, str]) -> None:
        listed = "; ".join(f"{service}: {why}" for service, why in sorted(stuck.items()))
        super().__init__(
            f"{host} still has {_instances(left)}: {listed}. Fix it and drain again, which goes "
            f"on from here, or `box-bridge uncordon {host}`"
        )
        self.host = host
        self.left = left
        self.stuck = stuck


class DrainTimeout(ScaleError):
    """A host that is being drained still has `left` instances. The order stands.

    `short` counts, by service, the instances for which the other hosts have no room.

    Fix: wait, add a host, use `--force`, or take the order back with `uncordon`.
    """

    def __init__(self, host: str, left: int, timeout: float, short: Mapping[str, int]) -> None:
        listed = ", ".join(f"{count} of {service}" for service, count in sorted(short.items()))
        why = f"; no host has room for {listed}" if listed else ""
        super().__init__(
            f"{host} still has {_instances(left)} after {timeout:g} s{why}. The drain goes on; "
            f"`box-bridge uncordon {host}` ends it"
        )
        self.host = host
        self.left = left
        self.timeout = timeout
        self.short = short


def _instances(count: int) -> str:
    return f"{count} instance{'' if count == 1 else 's'}"
