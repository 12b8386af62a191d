"""One file, the environment, flags: which one wins, and how mistakes are reported."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bridge.config import find_file, load, load_instance, load_log, load_nats, load_notify
from bridge.errors import ConfigError
from bridge.settings import NotifyConfig
from tests.failing_call import OS_ERRORS, FailingCall

WHOLE = """
[box]
name = "box-a"
address = "127.0.0.1"
max_instances = 20
data_dir = "data"

[services.web]
command = ["python3", "-m", "http.server", "{port}", "--bind", "127.0.0.1"]
probe = { http = "/" }
"""


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "box.toml"
    file.write_text(text)
    return file


def problem(tmp_path: Path, text: str, **environ: str) -> str:
    with pytest.raises(ConfigError) as refused:
        load(write(tmp_path, text), environ=environ)
    return str(refused.value)


def test_the_documented_file_is_a_whole_configuration(tmp_path: Path) -> None:
    config = load(write(tmp_path, WHOLE), environ={})
    assert config.box.name == "box-a"
    assert config.data_dir == tmp_path / "data"
    assert config.services["web"].probe.http == "/"
    assert config.services["web"].drain_timeout == 30.0
    assert config.nats.url == "nats://127.0.0.1:4222"


def test_the_environment_overrides_the_file_and_a_flag_overrides_both(tmp_path: Path) -> None:
    file = write(tmp_path, WHOLE)
    environ = {"BOX_BRIDGE_MAX_INSTANCES": "7", "BOX_BRIDGE_NAME": "from-env"}
    config = load(file, environ=environ, flags={"box": {"name": "from-flag", "address": None}})
    assert (config.box.name, config.box.max_instances) == ("from-flag", 7)
    assert config.box.address == "127.0.0.1"


def test_the_name_defaults_to_the_hosts_first_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "Node-7.example.com")
    assert load(environ={}).box.name == "node-7"
    monkeypatch.setattr("socket.gethostname", lambda: "bad_name")
    with pytest.raises(ConfigError, match="set name"):
        load(environ={})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[box]\nmax_instance = 3", "did you mean `max_instances`"),
        ("[bx]", "did you mean `box`"),
        ("[services.web]\ncomand = []", "did you mean `command`"),
        ('[services.web]\ncommand = ["a"]\nprobe = { htp = "/" }', "did you mean `http`"),
        ("[services.web]\ncommand = []", "`command` is missing"),
        ("[services.web]", "`command` is missing"),
        ('[services."a.b"]\ncommand = ["a"]', "a service name has"),
        (
            '[box]\nmax_instances = "3"',
            "`max_instances` must be a whole number: `max_instances = 3`",
        ),
        ('[box]\nports = "1"', "first-last"),
        ('[box]\nports = "70000-70001"', "first-last"),
        ('[box]\nports = "100-101"', "fewer than max_instances"),
        ('[box]\nruntime = "magic"', "not known"),
        ('[box]\nengine = "magic"', "use podman, docker, nerdctl, a3s-box, or a path"),
        ('[box]\nisolation = "none"', '"sandbox"'),
        ('[box]\nruntime = "oci"\nallow_images = ["nginx"]', "is no pattern like"),
        ('[box]\nallow_images = ["docker.io/library/a:*"]', 'runtime = "oci"'),
        ('[box]\nmetrics = "nowhere"', "host:port"),
        ('[box]\nmetrics = "127.0.0.1:65536"', "host:port"),
        ('[box]\nname = "A"', "subject token"),
        ('[services.web]\ncommand = ["a"]\nprobe = { http = "x" }', "starts with '/'"),
        ('[services.web]\ncommand = ["a"]\nprobe = { http = "/", tcp = true }', "choose one"),
        ("[services]\nweb = 3", "expected `object`"),
        ("box = 3", "must be a table"),
        ("a =", "is not TOML"),
        ("[timing]\nheartbeat = 4", "at most a third of lease = 10: 3.33"),
        ("[timing]\nlease = 3\nheartbeat = 3", "at most a third of lease = 3: 1"),
        ("[timing]\nlease = 8", "heartbeat = 3 must be at most a third of lease = 8: 2.67"),
        ("[timing]\nlease = 1\nheartbeat = 0.1", "lease: expected `int` >= 2"),
        ('[nats]\nprefix = "a.b"', "not a name"),
        ('[nats]\nurl = "nats://a:99999"', "is not a NATS URL"),
        ('[nats]\nurl = "nats://[::1:4222"', "is not a NATS URL"),
        ('[nats]\nurl = "http://a:4222"', "is not a NATS URL"),
        ('[nats]\nurl = ","', "is not a NATS URL"),
        ('[services.web]\ncommand = ["a"]\nmetadata = { a = "' + "x" * 16385 + '" }', "16 KiB"),
    ],
)
def test_a_mistake_is_reported_with_its_place_and_fix(
    tmp_path: Path, text: str, expected: str
) -> None:
    message = problem(tmp_path, text)
    assert expected in message
    assert message.startswith((str(tmp_path), "[box]"))


@pytest.mark.parametrize("lease", [2, 3, 10, 60])
def test_a_heartbeat_may_be_a_third_of_the_lease(tmp_path: Path, lease: int) -> None:
    text = f"[timing]\nlease = {lease}\nheartbeat = {lease / 3}"
    timing = load(write(tmp_path, text), environ={}).timing
    lost = timing.heartbeat + max(timing.heartbeat, 1.0) + timing.heartbeat / 4
    assert lost < timing.lease, "sent again in time when one was lost"


def test_a_wrong_variable_is_named(tmp_path: Path) -> None:
    assert problem(tmp_path, WHOLE, BOX_BRIDGE_MAX_INSTANCES="x").startswith(
        "BOX_BRIDGE_MAX_INSTANCES"
    )
    assert "BOX_BRIDGE_NAME" in problem(tmp_path, WHOLE, BOX_BRIDGE_NAMES="x")


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "none.toml", environ={})


def test_instances_do_not_inherit_the_credentials_of_the_box(tmp_path: Path) -> None:
    environ = {
        "PATH": "/bin",
        "NATS_PASSWORD": "secret",
        "BOX_BRIDGE_NAME": "box-a",
        "NOTIFY_SOCKET": "/run/x",
        "WATCHDOG_USEC": "30000000",
        "WATCHDOG_PID": "1",
    }
    assert load(write(tmp_path, WHOLE), environ=environ).environ == {"PATH": "/bin"}


def test_the_file_is_the_argument_or_the_variable_or_box_toml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_file(None, environ={}) is None
    write(tmp_path, WHOLE)
    assert find_file(None, environ={}) == Path("box.toml")
    assert find_file(None, environ={"BOX_BRIDGE_CONFIG": "/x"}) == Path("/x")
    assert find_file(Path("/y"), environ={"BOX_BRIDGE_CONFIG": "/x"}) == Path("/y")


def test_log_settings_come_from_the_environment_unless_given() -> None:
    environ = {"BOX_BRIDGE_LOG": "debug", "BOX_BRIDGE_LOG_FORMAT": "json"}
    assert load_log(environ=environ).level == "debug"
    assert load_log("error", environ=environ).level == "error"
    assert load_log(environ=environ).style == "json"


# ── the connection ───────────────────────────────────────────────────────────────────────


def make_context(home: Path, name: str, **values: object) -> dict[str, str]:
    folder = home / "nats" / "context"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(values))
    return {"XDG_CONFIG_HOME": str(home)}


def test_the_watchdog_counts_for_the_process_that_it_names() -> None:
    given = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "1500000"}
    assert load_notify(environ={}) == NotifyConfig()
    assert load_notify(environ=given) == NotifyConfig(address="@x", watchdog=1.5)
    mine = {**given, "WATCHDOG_PID": str(os.getpid())}
    assert load_notify(environ=mine) == NotifyConfig(address="@x", watchdog=1.5)
    others = {**given, "WATCHDOG_PID": "1"}
    assert load_notify(environ=others) == NotifyConfig(address="@x")
    with pytest.raises(ConfigError, match="'soon' is not a number of microseconds"):
        load_notify(environ={**given, "WATCHDOG_USEC": "soon"})


def test_nats_variables_mean_what_they_mean_to_the_nats_cli() -> None:
    environ = {
        "NATS_URL": "nats://a:1, b:2",
        "NATS_USER": "u",
        "NATS_PASSWORD": "p",
        "NATS_CREDS": "/c",
        "NATS_NKEY": "/n",
        "NATS_CA": "/ca",
        "NATS_CERT": "/cert",
        "NATS_KEY": "/key",
    }
    nats = load_nats(environ=environ)
    assert nats.urls == ["nats://a:1", "nats://b:2"]
    assert (nats.user, nats.password, nats.creds, nats.nkey) == ("u", "p", "/c", "/n")
    assert (nats.ca, nats.cert, nats.key) == ("/ca", "/cert", "/key")


def test_a_context_of_the_nats_cli_is_read(tmp_path: Path) -> None:
    environ = make_context(
        tmp_path,
        "prod",
        description="ours",
        url="tls://prod:4222",
        creds="/prod.creds",
        nkey="",
        inbox_prefix="_INBOX.prod",
        tls_first=True,
        jetstream_domain="hub",
        color_scheme="x",
    )
    nats = load_nats(flags={"context": "prod"}, environ=environ)
    assert (nats.url, nats.creds, nats.tls_first) == ("tls://prod:4222", "/prod.creds", True)
    assert (nats.inbox_prefix, nats.domain) == ("_INBOX.prod", "hub")


def test_a_context_belongs_to_the_layer_that_names_it(tmp_path: Path) -> None:
    environ = make_context(tmp_path, "c", url="nats://context:1", user="from-context")
    named = {**environ, "NATS_CONTEXT": "c"}
    assert load_nats({"url": "nats://file:1"}, environ=named).url == "nats://context:1"
    assert load_nats(environ={**named, "NATS_URL": "nats://env:1"}).url == "nats://env:1"
    assert load_nats({"context": "c", "url": "nats://file:1"}, environ=environ).user
    by_flag = load_nats(flags={"context": "c"}, environ={**environ, "NATS_URL": "nats://env:1"})
    assert by_flag.url == "nats://context:1"
    flag = load_nats(flags={"context": "c", "url": "nats://flag:1"}, environ=environ)
    assert flag.url == "nats://flag:1"


def test_a_missing_context_is_reported_with_those_that_exist(tmp_path: Path) -> None:
    environ = make_context(tmp_path, "prod", url="x")
    with pytest.raises(ConfigError, match="contexts there: prod"):
        load_nats(flags={"context": "pord"}, environ=environ)
    (tmp_path / "nats" / "context" / "bad.json").write_text("{")
    with pytest.raises(ConfigError, match="is not a context"):
        load_nats(flags={"context": "bad"}, environ=environ)


# ── foreign exceptions ───────────────────────────────────────────────────────────────────

FAULTS = [
    *OS_ERRORS,
    OSError("without an errno"),
    ValueError("embedded null byte"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"),
    tomllib.TOMLDecodeError("Expected '='"),
    RuntimeError("Could not determine home directory."),
    RecursionError("maximum recursion depth exceeded"),
    OverflowError("int too large to convert"),
    msgspec.DecodeError("Input data was truncated"),
    msgspec.ValidationError("Expected `int`, got `str`"),
]


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (Path, "read_bytes"),
        (tomllib, "loads"),
        (Path, "resolve"),
        (Path, "absolute"),
        (msgspec, "convert"),
    ],
    ids=["read_bytes", "loads", "resolve", "absolute", "convert"],
)
def test_every_foreign_exception_of_reading_a_file_is_a_config_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    file = write(tmp_path, WHOLE)
    for fault in FAULTS:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, FailingCall(fault))
            with pytest.raises(ConfigError) as raised:
                load(file, environ={})
        assert raised.value.__cause__ is fault
        assert raised.value.problem.strip(": ")


@pytest.mark.parametrize("module", [Path, msgspec.json], ids=["read_bytes", "decode"])
def test_every_foreign_exception_of_reading_a_context_is_a_config_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any
) -> None:
    environ = make_context(tmp_path, "prod", url="x")
    for fault in FAULTS:
        with monkeypatch.context() as patch:
            patch.setattr(module, "read_bytes" if module is Path else "decode", FailingCall(fault))
            with pytest.raises(ConfigError, match="context prod"):
                load_nats(flags={"context": "prod"}, environ=environ)


def test_a_working_directory_that_is_gone_is_a_config_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ConfigError, match=r"the working directory: .*No such file"):
        load(environ={})
    monkeypatch.setattr(Path, "exists", FailingCall(PermissionError(13, "Permission denied")))
    with pytest.raises(ConfigError, match=r"box\.toml: cannot be read: Permission denied"):
        find_file(None, environ={})


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a = '\xff'", "is not TOML"),
        (b"a = " + b"[" * 100_000, "is not TOML"),
        (b'[box]\ndata_dir = "~nosuchuser/data"', "home directory"),
        (b'[box]\ndata_dir = "a\\u0000b"', "NUL"),
        (b'[services.web]\ncommand = ["echo", "a\\u0000b"]', "services.web.command: .* NUL"),
        (b'[services.web]\ncommand = ["a"]\nenv = {A = "a\\u0000"}', "web.env.A: .* NUL"),
        (b'[services.web]\ncommand = ["a"]\ncwd = "\\u0000"', "web.cwd: .* NUL"),
    ],
    ids=["not UTF-8", "nested too deeply", "unknown user", "NUL", "command", "env", "cwd"],
)
def test_a_file_with_any_content_is_a_config_error(
    tmp_path: Path, data: bytes, expected: str
) -> None:
    file = tmp_path / "box.toml"
    file.write_bytes(data)
    with pytest.raises(ConfigError, match=expected):
        load(file, environ={})


def test_variables_with_any_content_are_a_config_error() -> None:
    digits = "9" * 5000  # more than Python converts
    with pytest.raises(ConfigError, match="number of microseconds"):
        load_notify(environ={"WATCHDOG_USEC": digits})
    with pytest.raises(ConfigError, match="is not a port"):
        load_instance(environ={"BOX_INSTANCE_ID": "web-a", "PORT": digits})
    for metadata in ("\udcff", "[" * 100_000, "{", "[]"):
        with pytest.raises(ConfigError, match="must be a JSON object of strings"):
            load_instance(environ={"BOX_METADATA": metadata})


# ── conf.d ───────────────────────────────────────────────────────────────────────────────

API = '[services.api]\ncommand = ["api"]\n'


def write_more(tmp_path: Path, name: str, text: str) -> Path:
    file = tmp_path / "conf.d" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return file


def test_files_in_conf_d_add_services(tmp_path: Path) -> None:
    file = write(tmp_path, '[services.web]\ncommand = ["web"]\n')
    write_more(tmp_path, "api.toml", API)
    write_more(tmp_path, "notes.txt", "no TOML")
    assert list(load(file, environ={}).services) == ["web", "api"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{API}[box]\n", "[box] belongs into"),
        ('[services.web]\ncommand = ["w"]\n', "[services.web] is in"),
        ("[services.api]\ncomand = []\n", "[services.api]"),
    ],
)
def test_a_mistake_in_conf_d_names_the_file(tmp_path: Path, text: str, expected: str) -> None:
    file = write(tmp_path, '[services.web]\ncommand = ["web"]\n')
    added = write_more(tmp_path, "api.toml", text)
    with pytest.raises(ConfigError) as caught:
        load(file, environ={})
    assert str(caught.value).startswith(str(added))
    assert expected in str(caught.value)
