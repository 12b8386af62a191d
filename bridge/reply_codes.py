"""The codes of refusals: what a client may decide by, beside the sentence that people read.

A reply that is an error carries its code in the header `Box-Code`. A sentence may change from one
version to the next, a code does not. A newer Box may send codes that this list lacks.
"""

from __future__ import annotations

import enum
from typing import Final

from bridge.errors import BoxError


class ReplyCode(enum.StrEnum):
    """Why a Box refused a request, or did only part of it. The values travel."""

    INVALID_REQUEST = "invalid_request"  # the payload, a header or a name cannot be accepted
    TOO_LARGE = "too_large"  # the request, or the record it would make, exceeds a bound
    EXPIRED = "expired"  # it arrived after its Box-Expires-At
    NOT_READY = "not_ready"  # this Box may not answer now, or has not seen Box-Version yet
    BUSY = "busy"  # too many requests, or other decisions kept coming first
    UNKNOWN_SERVICE = "unknown_service"  # no live Box lists it, or it was never scaled
    UNKNOWN_HOST = "unknown_host"  # an order for a host that no Box has seen
    UNSUPPORTED_CONFIG = "unsupported_config"  # no live host can run the service with this config
    CONFLICT = "conflict"  # the request_id was used for another request
    STALE_REVISION = "stale_revision"  # another revision than the request expects
    CAPPED = "capped"  # carried out with a lower target than the request names
    CAPACITY_EXCEEDED = "capacity_exceeded"  # no room for all, and part is not granted
    UNREADABLE_RECORD = "unreadable_record"  # a newer Box wrote the record, or it is damaged
    NOT_PERMITTED = "not_permitted"  # NATS does not let the Box write this
    STORE_REFUSED = "store_refused"  # JetStream took no write, or gave no data
    INTERNAL_ERROR = "internal_error"  # a bug: the log of the Box has it


TRANSIENT: Final = frozenset({ReplyCode.NOT_READY, ReplyCode.BUSY})
"""The codes after which the same request may succeed a moment later, or at another Box."""


_SENTENCES: Final = (
    ("not ready: ", ReplyCode.NOT_READY),
    ("Busy: ", ReplyCode.BUSY),
    ("request: expired at ", ReplyCode.EXPIRED),
    ("Capped to ", ReplyCode.CAPPED),
)


def code_of_sentence(error: str | None) -> ReplyCode | None:
    """The code of an `error` without one, as a Box of 0.1 sends it; None if it is another refusal.

    Only for the codes that a client decides by. While a fleet is updated, a client of this version
    meets such Boxes. To be removed in 0.4, when no Box of 0.1 can be in a fleet.
    """
    for beginning, code in _SENTENCES:
        if (error or "").startswith(beginning):
            return code
    return None


class Refusal(BoxError):
    """A Box refuses a request, and nothing was changed: the code for clients, the reason for
    people. The text of the error is the `error` of the reply.

    Fix: nothing: a Box answers with it, and clients raise ScaleRefused or OrderRefused.
    """

    def __init__(self, code: ReplyCode, reason: str) -> None:
        match code:
            case ReplyCode.NOT_READY:
                super().__init__(f"not ready: {reason}; ask again")
            case ReplyCode.BUSY:
                super().__init__(f"Busy: {reason}")
            case _:
                super().__init__(reason)
        self.code = code
