"""What runs inside an instance: it registers itself with the gateways and reports its health."""

from bridge.instance.registration import Registration, register

__all__ = [
    "Registration",
    "register",
]
