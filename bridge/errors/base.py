"""The root of the errors, and those that any part of box-bridge may raise."""

from __future__ import annotations


class BridgeError(Exception):
    """The root of every error that box-bridge raises.

    Fix: catch it to handle all of them, or catch a branch of the tree.
    """


class ConfigError(BridgeError):
    """A configuration file, environment variable or flag is wrong.

    `where` names the place (`box.toml: [services.web] command`, `NATS_CREDS`), `problem` what is
    wrong there and how to fix it.

    Fix: change the value at `where`; `box-bridge config check` checks a file before a Box uses it.
    """

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}")
        self.where = where
        self.problem = problem


class ProtocolError(BridgeError):
    """A payload does not follow the wire contract.

    `type_name` is the contract's type, `field` the path of the wrong field (empty for the whole
    payload), `problem` what is wrong with it.

    Fix: correct the field in the program that sends the payload.
    """

    def __init__(self, type_name: str, field: str, problem: str) -> None:
        place = f"{type_name} field `{field}`" if field else type_name
        super().__init__(f"{place}: {problem}")
        self.type_name = type_name
        self.field = field
        self.problem = problem


class NameRefused(ProtocolError):
    """A service name, instance id or host name cannot be a subject token.

    Fix: use 1 to 63 of a-z, 0-9 and '-', with a letter or digit at both ends.
    """

    def __init__(self, kind: str, value: str) -> None:
        shown = value if len(value) <= 80 else value[:77] + "..."
        super().__init__(
            kind,
            "",
            f"{shown!r} is not a name: use 1 to 63 of a-z, 0-9 and '-', "
            "starting and ending with a letter or digit",
        )
        self.kind = kind
        self.value = value


class BenchFailed(BridgeError):
    """A row of the bench did not do the work that it measures. Its figure would mean nothing.

    Fix: read the message; measure again on a quiet machine.
    """
