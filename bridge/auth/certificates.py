"""A certificate authority for tests, and the certificates that it signs. Needs the program openssl.

`ca.pem` and `ca.key` are made once; the other certificates are made again on each call, under the
same authority: so a call renews them.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bridge.errors import ConfigError
from bridge.private_files import make_private, make_private_directory
from bridge.subjects import check_name

CA: Final = "ca"
SERVER: Final = "server"

_CA_DAYS: Final = 3650
_KEY: Final = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def make_certificates(
    directory: Path, *, servers: Sequence[str], clients: Sequence[str], days: int
) -> list[Path]:
    """Make the authority if it is missing, a certificate for the `servers`, which are host names or
    addresses, and one for each of `clients`; returns their files.

    Raises ConfigError if openssl is missing or fails, and NameRefused.
    """
    for name in clients:
        check_name("client", name)
        if name in (CA, SERVER):
            raise ConfigError(name, "is the name of another file: choose another name")
    directory = directory.absolute()
    try:
        make_private_directory(directory)
    except OSError as exc:
        raise ConfigError(str(directory), f"cannot be used: {exc.strerror}") from exc
    authority = directory / f"{CA}.pem"
    if not authority.exists():
        uses = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
        _sign(directory, CA, ["-days", str(_CA_DAYS), *uses])
    names = ",".join(f"{_kind(server)}:{server}" for server in servers)
    common = ["-days", str(days), "-CA", str(authority), "-CAkey", str(directory / f"{CA}.key")]
    common += ["-addext", "basicConstraints=critical,CA:FALSE"]
    _sign(directory, SERVER, [*common, "-addext", f"subjectAltName={names}"])
    for client in clients:
        _sign(directory, client, [*common, "-addext", "extendedKeyUsage=clientAuth"])
    return [directory / f"{name}.pem" for name in (CA, SERVER, *clients)]


def tls_block(directory: Path) -> str:
    """The TLS settings of nats-server with the certificates in `directory`."""
    where = directory.absolute()
    return (
        "tls {\n"
        f'    cert_file: "{where}/{SERVER}.pem"\n'
        f'    key_file: "{where}/{SERVER}.key"\n'
        f'    ca_file: "{where}/{CA}.pem"\n'
        "    verify: true\n"
        "    handshake_first: true\n"
        "}\n"
    )


def _kind(server: str) -> str:
    return "IP" if ":" in server or server.replace(".", "").isdigit() else "DNS"


def _sign(directory: Path, name: str, options: Sequence[str]) -> None:
    """Make ``NAME.key`` and ``NAME.pem``, a certificate for `name`. Each is replaced as a whole."""
    made = {kind: directory / f".{name}.{kind}" for kind in ("key", "pem")}
    for file in made.values():
        make_private(file, empty=True)
    command = ["openssl", "req", "-x509", *_KEY, "-subj", f"/CN={name}", *options]
    command += ["-keyout", str(made["key"]), "-out", str(made["pem"])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as exc:
        raise ConfigError("openssl", f"cannot be started: {exc.strerror}; install it") from exc
    if done.returncode != 0:
        raise ConfigError("openssl", f"failed: {' '.join(done.stderr.split())[-300:]}")
    for kind, file in made.items():
        file.replace(directory / f"{name}.{kind}")
