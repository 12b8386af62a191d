"""Contexts of the nats CLI: each key is honoured or refused by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bridge.config import load, load_nats, nats_context
from bridge.errors import ConfigError

URL = "nats://context:1"
EMPTY = {
    **dict.fromkeys(("name", "description", "url", "token", "user", "password", "creds"), ""),
    **dict.fromkeys(("nkey", "cert", "key", "ca", "nsc", "jetstream_domain"), ""),
    **dict.fromkeys(("jetstream_api_prefix", "jetstream_event_prefix", "inbox_prefix"), ""),
    **dict.fromkeys(("user_jwt", "user_seed", "socks_proxy", "color_scheme"), ""),
    **dict.fromkeys(("windows_cert_store", "windows_cert_match_by", "windows_cert_match"), ""),
    "windows_ca_certs_match": None,
    "tls_first": False,
}
"""A context as `nats context save` writes it, with all keys of 2026."""


def save(home: Path, name: str = "c", *, select: bool = False, **values: object) -> dict[str, str]:
    """Write a context beneath `home`; the environment in which the `nats` CLI would find it."""
    folder = home / ".config" / "nats"
    (folder / "context").mkdir(parents=True, exist_ok=True)
    (folder / "context" / f"{name}.json").write_text(json.dumps({**EMPTY, "url": URL, **values}))
    if select:
        (folder / "context.txt").write_text(f"{name}\n")
    return {"HOME": str(home)}


@pytest.mark.parametrize(
    ("key", "value", "setting", "result"),
    [
        ("user", "u", "user", "u"),
        ("password", "p", "password", "p"),
        ("token", "t", "token", "t"),
        ("tls_first", True, "tls_first", True),
        ("inbox_prefix", "_INBOX.me", "inbox_prefix", "_INBOX.me"),
        ("jetstream_domain", "hub", "domain", "hub"),
        ("jetstream_api_prefix", "$JS.hub.API", "domain", "hub"),
        ("jetstream_api_prefix", "$JS.API", "domain", ""),
        ("creds", "/keys/u.creds", "creds", "/keys/u.creds"),
        ("creds", "~/keys/u.creds", "creds", "{home}/keys/u.creds"),
        ("creds", "$HOME/u.creds", "creds", "{home}/u.creds"),
        ("creds", "${HOME}/u.creds", "creds", "{home}/u.creds"),
        ("creds", "file:///keys/u.creds", "creds", "/keys/u.creds"),
        ("nkey", "~/u.nk", "nkey", "{home}/u.nk"),
        ("ca", "~/ca.pem", "ca", "{home}/ca.pem"),
        ("cert", "~/c.pem", "cert", "{home}/c.pem"),
        ("key", "~/k.pem", "key", "{home}/k.pem"),
        ("description", "ours", "url", URL),
        ("color_scheme", "red", "url", URL),
        ("jetstream_event_prefix", "x", "url", URL),
    ],
)
def test_a_key_is_honoured(
    tmp_path: Path, key: str, value: Any, setting: str, result: object
) -> None:
    environ = save(tmp_path, **{key: value})
    expected = result.format(home=tmp_path) if isinstance(result, str) else result
    assert getattr(load_nats(flags={"context": "c"}, environ=environ), setting) == expected


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("nsc", "nsc://op/acc/user"),
        ("user_jwt", "eyJ0eXAi.eyJ.sig"),
        ("user_seed", "SUAS3CRET"),
        ("socks_proxy", "socks5://127.0.0.1:9"),
        ("jetstream_api_prefix", "hub.js.API"),
        ("windows_cert_store", "user"),
        ("windows_cert_match", "x"),
        ("windows_cert_match_by", "subject"),
        ("windows_ca_certs_match", ["x"]),
        ("creds", "op://vault/item/field"),
        ("creds", "env://CREDS"),
        ("creds", "data:;base64,U0VDUkVU"),
        ("nkey", "nsc://op/acc/user"),
        ("a_key_of_next_year", True),
    ],
)
def test_a_key_that_is_not_supported_is_refused_by_its_name(
    tmp_path: Path, key: str, value: Any
) -> None:
    environ = save(tmp_path, **{key: value})
    with pytest.raises(ConfigError, match=f"context c {key}: ") as refused:
        load_nats(flags={"context": "c"}, environ=environ)
    assert "S3CRET" not in str(refused.value)
    assert "U0VDUkVU" not in str(refused.value)


def test_a_value_of_the_wrong_type_names_the_context(tmp_path: Path) -> None:
    environ = save(tmp_path, tls_first="yes")
    with pytest.raises(ConfigError, match="context c: `tls_first` must be true or false"):
        load_nats(flags={"context": "c"}, environ=environ)


def test_a_context_may_be_named_by_the_path_of_its_file_but_by_no_relative_one(
    tmp_path: Path,
) -> None:
    environ = save(tmp_path)
    file = tmp_path / ".config" / "nats" / "context" / "c.json"
    assert load_nats(flags={"context": str(file)}, environ={}).url == URL
    with pytest.raises(ConfigError, match="must be a name"):
        load_nats(flags={"context": "../c"}, environ=environ)


def test_contexts_are_found_by_xdg_config_home_else_in_the_account_s_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "account")
    save(tmp_path / "xdg", url="nats://xdg:1")
    monkeypatch.setattr(nats_context, "account_home", lambda: str(tmp_path / "account"))
    elsewhere = {"HOME": str(tmp_path / "other")}
    assert load_nats(flags={"context": "c"}, environ=elsewhere).url == URL
    xdg = {**elsewhere, "XDG_CONFIG_HOME": str(tmp_path / "xdg" / ".config")}
    assert load_nats(flags={"context": "c"}, environ=xdg).url == "nats://xdg:1"


def test_the_selected_context_counts_where_nothing_names_a_server(tmp_path: Path) -> None:
    environ = save(tmp_path, user="u", select=True)
    nats = load_nats(environ=environ)
    assert (nats.url, nats.user, nats.context) == (URL, "u", "c")
    assert load_nats({"user": "file"}, environ=environ).user == "file"
    save(tmp_path, "other", url="nats://other:1")
    for named in (
        load_nats({"url": "nats://other:1"}, environ=environ),
        load_nats(environ={**environ, "NATS_URL": "nats://other:1"}),
        load_nats(flags={"url": "nats://other:1"}, environ=environ),
        load_nats(flags={"context": "other"}, environ=environ),
        load_nats(environ={**environ, "NATS_CONTEXT": "other"}),
    ):
        assert (named.url, named.user) == ("nats://other:1", "")


def test_a_selected_context_that_is_gone_is_named(tmp_path: Path) -> None:
    environ = save(tmp_path, select=True)
    (tmp_path / ".config" / "nats" / "context" / "c.json").unlink()
    with pytest.raises(ConfigError, match="context c"):
        load_nats(environ=environ)


def test_a_tilde_in_the_file_and_in_variables_is_the_home_directory(tmp_path: Path) -> None:
    file = tmp_path / "box.toml"
    file.write_text(
        '[box]\nname = "a"\ndata_dir = "~/data"\n'
        '[nats]\ncreds = "~/u.creds"\nca = "ca.pem"\n'
        '[services.web]\ncommand = ["~/bin/web", "~/x"]\ncwd = "~/app"\n'
    )
    environ = {"HOME": "/home/me", "NATS_KEY": "~/key.pem"}
    config = load(file, environ=environ)
    assert config.box.data_dir == "/home/me/data"
    assert config.nats.creds == "/home/me/u.creds"
    assert config.nats.key == "/home/me/key.pem"
    assert config.nats.ca == str(tmp_path / "ca.pem")  # relative to the file
    web = config.services["web"]
    assert (web.command, web.cwd) == (["/home/me/bin/web", "~/x"], "/home/me/app")
    assert load(Path("~/box.toml"), environ={"HOME": str(tmp_path)}).box.name == "a"


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_file_that_windows_saved_is_read(tmp_path: Path, mark: str, end: str) -> None:
    lines = ["[box]", 'name = "a"', "[services.web]", 'command = ["true"]', ""]
    file = tmp_path / "box.toml"
    file.write_bytes((mark + end.join(lines)).encode())
    assert load(file, environ={}).services["web"].command == ["true"]
    environ = save(tmp_path, select=True)
    for saved in (tmp_path / ".config" / "nats").rglob("c*.*"):
        saved.write_bytes((mark + saved.read_text().replace("\n", end)).encode())
    assert load_nats(environ=environ).url == URL


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_file_in_utf_16_is_named_as_such(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "box.toml"
    file.write_bytes("\ufeff[box]\n".encode(encoding))
    with pytest.raises(ConfigError, match="is UTF-16, as Windows may save it"):
        load(file, environ={})
