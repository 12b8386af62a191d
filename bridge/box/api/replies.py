"""Replies of a Box: how an error becomes a refusal, and a refusal or an answer a reply.

Each reply fits the server's `max_payload`. Each that has an `error` has its code in `Box-Code`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from msgspec.structs import replace

from bridge.admin_protocol import (
    AdminResponse,
    Answer,
    HistoryResponse,
    HostsResponse,
    PlanResponse,
    ServicesResponse,
)
from bridge.box.api import instance_pages
from bridge.box.scheduler.admission import Admission
from bridge.bus.service.endpoint import Reply
from bridge.errors import BusError, CutOff, NotPermitted, ProtocolError, TooLarge
from bridge.log_protocol import LogsResponse
from bridge.protocol import InstancesResponse, ScaleResponse, encode
from bridge.reply_codes import Refusal, ReplyCode
from bridge.subjects import INSTANCES_TOTAL, REPLY_CODE, REVISION

Response = Answer | ScaleResponse | InstancesResponse

_HEADER_ROOM: Final = 1024  # bytes of a reply that are not its payload
_NO_HEADERS: Final[Mapping[str, str]] = {}


Refused = ProtocolError | BusError | Refusal
"""The errors that a refusal reports: after each of them nothing was changed."""


def refusal_of(exc: Refused, *, store: str = "the fleet's store refused") -> Refusal:
    """The refusal that reports `exc`, an error after which nothing was changed. `store` begins the
    sentence about an error of the fleet's store.
    """
    match exc:
        case Refusal():
            return exc
        case ProtocolError():
            return Refusal(ReplyCode.INVALID_REQUEST, str(exc))
        case CutOff():
            return Refusal(ReplyCode.NOT_READY, "this Box is cut off from NATS")
        case NotPermitted():
            code = ReplyCode.NOT_PERMITTED
        case TooLarge():
            code = ReplyCode.TOO_LARGE
        case _:
            code = ReplyCode.STORE_REFUSED
    return Refusal(code, f"{store}: {exc}")


def fitted(shortened: Callable[[int], Response], count: int, max_payload: int) -> tuple[bytes, int]:
    """The payload of a response with as many of its `count` items as `max_payload` allows, and how
    many these are. `shortened` gives the response with the first so many.
    """
    limit = max_payload - _HEADER_ROOM
    data = encode(shortened(count))
    while len(data) > limit and count:
        count = min(count - 1, count * limit // len(data))
        data = encode(shortened(count))
    return data, count


# ── box.scale and box.instances ──────────────────────────────────────────────────────────


def scale_reply(
    admission: Admission, max_payload: int, headers: Mapping[str, str] = _NO_HEADERS
) -> Reply:
    """The reply that reports an admission, with `headers`."""
    response, code = admission.response, admission.code
    data, cut = with_instances(response, max_payload)
    headers = {**cut, **headers, REVISION: str(admission.revision)}
    if code is None:
        return Reply(data=data, headers=headers, outcome="accepted")
    headers[REPLY_CODE] = code
    if code is ReplyCode.CAPPED:
        return Reply(data=data, headers=headers, outcome="capped")
    return Reply(data=data, headers=headers, outcome="refused", error=response.error or "")


def with_instances(
    response: ScaleResponse | InstancesResponse, max_payload: int
) -> tuple[bytes, dict[str, str]]:
    """The payload with as many instances as `max_payload` allows, and the header that counts them
    all if that is not all of them.
    """
    total = len(response.instances)
    most = min(total, max_payload // instance_pages.SMALLEST)  # to encode more takes long
    data, count = fitted(lambda count: _first(response, count), most, max_payload)
    return data, {} if count == total else {INSTANCES_TOTAL: str(total)}


def _first(
    response: ScaleResponse | InstancesResponse, count: int
) -> ScaleResponse | InstancesResponse:
    if count == len(response.instances):
        return response
    if isinstance(response, InstancesResponse):
        return instance_pages.first(response, count)
    return replace(response, instances=response.instances[:count])


def refused_instances(refusal: Refusal) -> Reply:
    """The refusal of a request to `box.instances`."""
    return _refused(InstancesResponse(total=0, instances=[], hosts={}, error=str(refusal)), refusal)


# ── the subjects of operators ────────────────────────────────────────────────────────────


def refused_hosts(refusal: Refusal) -> Reply:
    """The refusal of a request to `box.hosts`."""
    return _refused(HostsResponse(total=0, hosts=[], error=str(refusal)), refusal)


def refused_services(refusal: Refusal) -> Reply:
    """The refusal of a request to `box.services`."""
    return _refused(ServicesResponse(total=0, services=[], error=str(refusal)), refusal)


def refused_order(refusal: Refusal) -> Reply:
    """The refusal of a request to `box.admin`."""
    return _refused(AdminResponse(done=False, error=str(refusal)), refusal)


def refused_history(refusal: Refusal) -> Reply:
    """The refusal of a request to `box.history`."""
    return _refused(HistoryResponse(service="", entries=[], error=str(refusal)), refusal)


def refused_plan(refusal: Refusal) -> Reply:
    """The refusal of a request to `box.plan`. A plan that would be refused is an answer."""
    response = PlanResponse(
        service="",
        replicas=0,
        accepted=False,
        before=0,
        target=0,
        slots=[],
        hosts=[],
        error=str(refusal),
    )
    return _refused(response, refusal)


def refused_logs(refusal: Refusal) -> Reply:
    """The refusal of a request to `box.logs.<host>`."""
    return _refused(LogsResponse(error=str(refusal)), refusal)


def _refused(response: Response, refusal: Refusal) -> Reply:
    return Reply(
        data=encode(response),
        headers={REPLY_CODE: refusal.code},
        outcome="refused",
        error=str(refusal),
    )
