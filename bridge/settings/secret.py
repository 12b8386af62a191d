"""A secret of a service, which the configuration names and does not contain."""

from __future__ import annotations

from msgspec import Struct


class Secret(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the value of an environment variable is: read at each start of an instance, and kept
    nowhere. A line end at its end does not count.
    """

    file: str = ""
    """A file that the Box can read. A relative path starts at the configuration file."""
    credential: str = ""
    """A credential of systemd by its name: `LoadCredential=` or `SetCredentialEncrypted=` of the
    Box's unit.
    """

    def __post_init__(self) -> None:
        if bool(self.file) == bool(self.credential):
            raise ValueError('a secret is { file = "…" } or { credential = "…" }')
        if "/" in self.credential or self.credential in (".", ".."):
            raise ValueError(f"credential = {self.credential!r} must be a name, without a path")
