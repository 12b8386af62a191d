"""The side of the code that runs inside an instance: see `register`."""

from bridge.instance.registration import Registration, register

__all__ = ["Registration", "register"]
