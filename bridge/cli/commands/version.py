"""`version`: the versions of this package and of its dependencies."""

from __future__ import annotations

from bridge.cli.flags import Json


def version(*, json: Json = False) -> int:
    """Show the versions of box-bridge and its dependencies.

    For example:

        box-bridge version
        box-bridge version --json
    """
    from bridge.cli.versions import print_versions

    return print_versions(json=json)
