"""`auth certs`: TLS certificates for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from bridge.cli.exit_codes import DONE
from bridge.cli.flags import Json


def auth_certs(
    directory: Annotated[Path, Parameter(name="DIR", help="The directory; it holds secrets.")],
    /,
    *,
    servers: Annotated[
        str, Parameter(help="The names and addresses of the NATS servers.")
    ] = "localhost,127.0.0.1",
    clients: Annotated[
        str, Parameter(help="The clients, separated by commas: each gets a certificate.")
    ] = "client",
    days: Annotated[
        int, Parameter(validator=Number(gte=1, lte=3650), help="How long certificates last.")
    ] = 90,
    json: Json = False,
) -> int:
    """Make a certificate authority and TLS certificates, for tests.

    The next call with the same DIR renews the certificates under the same
    authority. A client takes its new files at its next connection, a server after
    a reload. It needs the program openssl. For example:

        box-bridge auth certs certs --clients box-a,operator
        nats-server --signal reload
    """
    from bridge.auth.certificates import make_certificates, tls_block
    from bridge.auth.site import names
    from bridge.cli.orders import print_done

    made = make_certificates(directory, servers=names(servers), clients=names(clients), days=days)
    listed = ", ".join(file.name for file in made)
    block = "" if json else f"\n\nFor the server:\n\n{tls_block(directory)}"
    print_done(f"{directory.absolute()} has {listed}, each with its key.{block}", json=json)
    return DONE
