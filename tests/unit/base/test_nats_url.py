"""NATS URLs as people write them, and that no message shows a secret in one."""

from __future__ import annotations

import pytest

from bridge.errors import without_secret
from bridge.nats_url import ServerUrl, parse_urls
from bridge.settings import NatsConfig

HOST = "nats://127.0.0.1:4222"


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        ("127.0.0.1:4222", [HOST]),
        ("nats://127.0.0.1:4222/", [HOST]),
        ("nats://127.0.0.1:4222\n", [HOST]),
        (f"  {HOST} ,, ", [HOST]),
        ("NATS://127.0.0.1:4222", [HOST]),
        ("TLS://Example.com", ["tls://Example.com"]),
        ("localhost", ["nats://localhost"]),
        ("nats://[::1]:4222", ["nats://[::1]:4222"]),
        ("wss://example.com/nats?x=1", ["wss://example.com/nats?x=1"]),
        ("a,b:2", ["nats://a", "nats://b:2"]),
    ],
)
def test_a_url_is_taken_as_it_is_usually_written(text: str, urls: list[str]) -> None:
    assert NatsConfig(url=text).urls == urls


@pytest.mark.parametrize(
    ("text", "cure"),
    [
        ("tcp://h:4222", "write nats://"),
        ("http://h:8222", "monitoring port"),
        ("https://h", "write tls://"),
        ("ftp://h", "nats://host:4222"),
        ("nats://h:4222?x=1", "ends with the port"),
        ("nats://h:4222/path", "ends with the port"),
        ("nats://h:4222#x", "ends with the port"),
        ("nats://h 1:4222", "separated by commas"),
        ("nats://h:1\nnats://h:2", "separated by commas"),
        ("nats://h:port", "IPv6 in brackets"),
        ("nats://h:0", "IPv6 in brackets"),
        ("nats://::1:4222", "IPv6 in brackets"),
        ("nats://", "nats://host:4222"),
        ("", "names no server"),
        (" , ", "names no server"),
    ],
)
def test_what_is_no_nats_url_is_refused_with_the_cure(text: str, cure: str) -> None:
    with pytest.raises(ValueError, match="is not a NATS URL") as refused:
        parse_urls(text)
    assert cure in str(refused.value)


@pytest.mark.parametrize(
    ("login", "user", "password"),
    [
        ("box:p%40ss%2Fw0rd%231", "box", "p@ss/w0rd#1"),
        ("b%40x:x", "b@x", "x"),
        ("box:a%2Cb%3Ac%3Fd%25", "box", "a,b:c?d%"),
        ("b%C3%BCx:p%20w", "büx", "p w"),
        ("büx:pä", "büx", "pä"),
        ("box:p@ss", "box", "p@ss"),
        ("box:", "box", ""),
        ("token%2F1", "token/1", None),
    ],
)
def test_a_user_and_a_password_are_decoded(login: str, user: str, password: str | None) -> None:
    assert parse_urls(f"nats://{login}@h:4222") == [
        ServerUrl(url="nats://h:4222", user=user, password=password)
    ]


@pytest.mark.parametrize(
    "text",
    [
        "nats://box:p@s3cret/w0rd#1@h:4222",
        "nats://box:s3cret,part2@h:4222",
        "nats://box:s3cret/x@h:4222",
        "nats://box:s3cret#x@h:4222",
        "nats://box:s3cret?x@h:4222",
        "nats://box:s3cret%@h:4222",
        "nats://box:s3cret%zz@h:4222",
        "nats://box:s3cret x@h:4222",
        "nats://box:s3cret@h:port",
        "nats://box:s3cret",
        "nats://box:x://s3cret@h:port",
        "box:x://s3cret@h:port",
        "tcp://box:s3cret@h",
        "nats://a:1,nats://box:s3cret,x://y@h",
        "nats://box:1234,s3cret@h:4222",
        "nats://h:4222?token=s3cret",
    ],
)
def test_a_secret_that_is_not_encoded_is_refused_and_never_shown(text: str) -> None:
    with pytest.raises(ValueError, match=r"url = ") as refused:
        parse_urls(text)
    assert "s3cret" not in str(refused.value)


def test_the_cure_for_a_password_that_is_not_encoded_is_named() -> None:
    with pytest.raises(ValueError, match=r"%40 for @.*%2F for /"):
        parse_urls("nats://box:p@ss/w0rd#1@h:4222")
    with pytest.raises(ValueError, match="%2C"):
        parse_urls("nats://box:1234,part2@h:4222")


def test_several_servers_are_shown_without_their_secrets() -> None:
    assert without_secret("nats://a:b@h:1, tls://t@k:2") == "nats://***@h:1, tls://***@k:2"
    assert without_secret("h:1,k") == "h:1,k"
