"""Settings, one row each. `<home>/settings.toml` beats the default, SKYLIFT_<NAME> in the environment beats the file, a flag beats both."""

# ruff: noqa: RUF009 (_setting returns a dataclass field)
from __future__ import annotations

import base64
import ipaddress
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from skylift.errors import SetupError, redact
from skylift.losses import KINDS, Losses


def _setting(default: Any, help: str, *, least: float | None = None, one_of: tuple[str, ...] = (), secret: bool = False) -> Any:
    return field(default=default, repr=not secret, metadata={"help": help, "least": least, "one_of": one_of})


@dataclass(frozen=True, slots=True)
class Settings:
    """What a skylift process needs to know. `{home}` in a URL stands for the absolute path of the home folder."""

    home: Path = _setting(Path(".skylift"), "folder that holds everything: store, key, settings.toml, embedded target, logs")
    store: str = _setting("sqlite:///{home}/store.sqlite", "URL of the database for skylift's own state", secret=True)
    target: str = _setting("duckdb:///{home}/target.duckdb", "URL of the database to copy to", secret=True)
    host: str = _setting("127.0.0.1", "address to listen on")
    port: int = _setting(7048, "port to listen on; 0 takes a free one", least=0)
    company: str = _setting("CRONUS", "name of the company that a new environment begins with")
    schema_version: str = _setting("1.0", "OData schema version of a request that names none", one_of=("1.0", "2.0", "2.1"))
    page_size: int = _setting(20_000, "rows of a page of an API answer", least=1)
    max_body_bytes: int = _setting(4 * 2**20, "size limit of a request's body", least=1024)
    api_requests: int = _setting(6000, "requests that a user may make within `api_window_s`", least=1)
    api_running: int = _setting(5, "requests of a user that are worked on at once; others wait", least=1)
    api_queue: int = _setting(95, "requests of a user that may wait", least=0)
    api_window_s: float = _setting(300.0, "seconds over which `api_requests` are counted", least=0.1)
    api_body_s: float = _setting(480.0, "seconds that the body of a request may take to arrive", least=0.01)
    api_wait_s: float = _setting(480.0, "seconds that a request may wait for its turn", least=0.01)
    api_work_s: float = _setting(480.0, "seconds that a request may be worked on; then it is broken off", least=0.01)
    api_answer_s: float = _setting(600.0, "seconds after which a request is answered, whatever has become of it", least=0.01)
    api_connections: int = _setting(100, "requests of a user that may be open at once, running and waiting", least=1)
    drain_s: int = _setting(30, "seconds that running requests have to end when the service stops", least=1)
    cors_origins: str = _setting("", "web origins whose pages may call the API from a browser, separated by blanks")
    tls_cert: str = _setting("", "file with the certificate chain (PEM) for HTTPS; empty: HTTP")
    tls_key: str = _setting("", "file with the key (PEM) of `tls_cert`")
    trusted_proxies: str = _setting("", "addresses or networks of proxies whose X-Forwarded-* headers count, separated by blanks")
    basic_auth: str = _setting("on-premises", "roots under which `Basic name:key` signs in", one_of=("off", "on-premises", "everywhere"))
    jwt_issuer: str = _setting("", "issuer (URL) whose tokens sign in, found by its discovery document; empty: none")
    jwt_audience: str = _setting("", "audiences (`aud`) of which a token of the issuer must have one, separated by blanks")
    jwt_tenant: str = _setting("", "tenants (`tid`) of which a token of the issuer must be, separated by blanks; empty: any")
    jwt_administrators: str = _setting("API.ReadWrite.All Automation.ReadWrite.All",
                                       "roles or scopes of the issuer that make an administrator")
    jwt_operators: str = _setting("Financials.ReadWrite.All", "roles or scopes of the issuer that make an operator")
    jwt_readers: str = _setting("API.Read.All Financials.Read.All", "roles or scopes of the issuer that make a reader")
    jwt_leeway_s: float = _setting(60.0, "seconds by which the issuer's clock may differ", least=0)
    jwt_keys_s: float = _setting(300.0, "seconds after which the issuer's keys are fetched again", least=0.1)
    webhook_merge_s: float = _setting(30.0, "seconds after a change in which further ones join its notification", least=0)
    webhook_timeout_s: float = _setting(30.0, "seconds that a receiver has to answer a notification", least=0.1)
    webhook_handshake_s: float = _setting(5.0, "seconds that a receiver has to confirm a subscription", least=0.1)
    webhook_retry_s: float = _setting(30.0, "seconds until a failed notification is sent again; doubled up to an hour", least=0.01)
    webhook_give_up_h: float = _setting(36.0, "hours of failing after which a notification is dropped", least=0)
    webhook_days: float = _setting(3.0, "days after which a subscription ends unless it is renewed", least=0)
    webhook_networks: str = _setting("", "private networks that may be called, separated by blanks; those also without https")
    webhook_secret: str = _setting("", "whsec_ and a key in base64: notifications are signed as Standard Webhooks has it", secret=True)
    webhook_log: int = _setting(10_000, "calls of receivers that are kept in the log", least=0)
    subscriptions_online: int = _setting(200, "subscriptions that may be there when one is made under a /v2.0 root", least=0)
    subscriptions_on_premises: int = _setting(1000, "subscriptions that may be there when one is made under another root", least=0)
    accept: str = _setting("", f"changes to values that are accepted and counted, not refused, separated by blanks: {' '.join(KINDS)}")
    packs: str = _setting("", "upgrade packs that the data upgrade goes through, separated by blanks: names of built-in ones, or folders "
                              "(relative ones under `home`)")
    upgrade_step_s: float = _setting(3600.0, "seconds after which a step of an upgrade pack is ended", least=0.1)
    environment_name: str = _setting("production", "what telemetry calls this environment")
    telemetry_log: str = _setting("", "stderr, or a file (a relative one under `home`), for a line of JSON about each event; empty: none")
    otlp_endpoint: str = _setting("", "URL of a receiver of spans and metrics (OTLP over HTTP, such as http://localhost:4318); empty: none")
    otlp_headers: str = _setting("", "headers for it, name=value separated by commas, values percent-encoded", secret=True)
    otlp_interval_s: float = _setting(15.0, "seconds between two sendings of metrics to it", least=0.1)
    prometheus: str = _setting("off", "whether /metrics answers those who have a token", one_of=("off", "on"))
    validation_suites: str = _setting("", "folders with validation suites of one's own, separated by blanks (relative ones under `home`)")
    validation: str = _setting("on request", "whether suites that are automatic go through what every run and upgrade has changed",
                               one_of=("on request", "automatic"))
    validation_query_s: float = _setting(300.0, "seconds after which a query of a validation suite is ended", least=0.1)
    validation_rows: int = _setting(1000, "results of a validation test that are kept; more are counted", least=1)
    workers: int = _setting(2, "threads that copy", least=1)
    lease_s: float = _setting(15.0, "seconds after which a silent coordinator is replaced", least=0.1)
    poll_s: float = _setting(0.5, "seconds between two looks for new work", least=0.01)

    def __post_init__(self) -> None:
        object.__setattr__(self, "home", Path(self.home).absolute())
        for name in ("store", "target"):
            object.__setattr__(self, name, getattr(self, name).replace("{home}", str(self.home)))
        _check_together(self)

    def environment(self) -> dict[str, str]:
        """These settings as SKYLIFT_* variables, for a child process that is to have the same ones."""
        return {_variable(f.name): str(getattr(self, f.name)) for f in fields(self)}


def load_settings(flags: Mapping[str, Any] | None = None) -> Settings:
    """The settings of file, environment and `flags` (by setting name; None = not given).

    Raises SetupError naming the place of a value that cannot be used, and for an unknown name in the file.
    """
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    home = Path(given.get("home") or os.environ.get(_variable("home")) or ".skylift").absolute()
    values: dict[str, Any] = {}
    for name, value in _read_file(home / "settings.toml").items():
        values[name] = _checked(name, value, f"{home / 'settings.toml'}: {name}")
    for f in fields(Settings):
        if (text := os.environ.get(_variable(f.name))) is not None:
            values[f.name] = _checked(f.name, _parsed(f.name, text), f"environment variable {_variable(f.name)}")
    for name, value in given.items():
        values[name] = _checked(name, _parsed(name, value), f"--{name.replace('_', '-')}")
    return Settings(**{**values, "home": home})


def networks(text: str) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """The networks of a setting that lists addresses and networks separated by blanks. Raises ValueError."""
    return [ipaddress.ip_network(part) for part in text.split()]


def signing_key(settings: Settings) -> bytes:
    """The key that notifications are signed with, empty if they are not. Raises ValueError."""
    if not settings.webhook_secret:
        return b""
    prefix, _, text = settings.webhook_secret.partition("_")
    key = base64.b64decode(text, validate=True)
    if prefix != "whsec" or not 24 <= len(key) <= 64:
        raise ValueError(prefix)
    return key


def otlp_headers(settings: Settings) -> dict[str, str]:
    """The setting of that name as OTEL_EXPORTER_OTLP_HEADERS is read. Raises ValueError."""
    headers = {}
    for pair in filter(None, map(str.strip, settings.otlp_headers.split(","))):
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise ValueError(name)
        headers[name.strip().lower()] = unquote(value.strip())
    return headers


_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_NETWORKS = ("trusted_proxies", "webhook_networks")
_FIELDS = {f.name: f for f in fields(Settings)}


def _variable(name: str) -> str:
    return f"SKYLIFT_{name.upper()}"


def _read_file(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except NotADirectoryError:
        raise SetupError(f"{path.parent} is a file", hint="--home names the folder that holds everything", code="Settings") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SetupError(f"{path} cannot be read: {error}", hint="mend the file or remove it", code="Settings") from None
    unknown = sorted(values.keys() - (_FIELDS.keys() - {"home"}))
    if unknown:
        raise SetupError(f"{path}: no setting is called {', '.join(unknown)}",
                         hint=f"there are {', '.join(name for name in _FIELDS if name != 'home')}", code="Settings")
    return values


def _check_together(settings: Settings) -> None:
    """What no setting can be checked for by itself. Raises SetupError."""
    issuer = urlsplit(settings.jwt_issuer)
    if settings.jwt_issuer and issuer.scheme != "https" and not (issuer.scheme == "http" and issuer.hostname in _LOOPBACK):
        raise SetupError(f"jwt_issuer is '{settings.jwt_issuer}'; a URL with https is needed", hint=_FIELDS["jwt_issuer"].metadata["help"],
                         code="Settings")
    if settings.jwt_issuer and not settings.jwt_audience.split():
        raise SetupError("jwt_issuer needs jwt_audience too: a token made for another service must not sign in here",
                         hint=_FIELDS["jwt_audience"].metadata["help"], code="Settings")
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise SetupError("tls_cert and tls_key are needed both, or neither", hint=_FIELDS["tls_cert"].metadata["help"], code="Settings")
    try:
        signing_key(settings)
    except ValueError:
        raise SetupError("webhook_secret is not whsec_ and a key of 24 to 64 bytes in base64", code="Settings",
                         hint='make one: echo "whsec_$(openssl rand -base64 32)"') from None
    receiver = urlsplit(settings.otlp_endpoint)
    if settings.otlp_endpoint and (receiver.scheme not in ("http", "https") or not receiver.hostname):
        raise SetupError(f"otlp_endpoint is '{redact(settings.otlp_endpoint)}'; a URL with http or https is needed",
                         hint=_FIELDS["otlp_endpoint"].metadata["help"], code="Settings")
    try:
        otlp_headers(settings)
    except ValueError:
        raise SetupError("otlp_headers is not name=value, separated by commas", hint=_FIELDS["otlp_headers"].metadata["help"],
                         code="Settings") from None
    for name in _NETWORKS:
        try:
            networks(getattr(settings, name))
        except ValueError as error:
            raise SetupError(f"{name}: {error}", hint="write addresses or networks, e.g. 10.0.0.0/8, separated by blanks",
                             code="Settings") from None


def _parsed(name: str, value: Any) -> Any:
    """`value` as the setting's type where it is the text of one; checked by `_checked`."""
    try:
        return {"int": int, "float": float}.get(str(_FIELDS[name].type), str)(value)
    except ValueError:
        return value


def _checked(name: str, value: Any, place: str) -> Any:
    kind, rule = str(_FIELDS[name].type), _FIELDS[name].metadata
    expected: Any = {"int": int, "float": (int, float)}.get(kind, str)
    if not isinstance(value, expected) or isinstance(value, bool):
        raise SetupError(f"{place} is {value!r}; {'a whole number' if kind == 'int' else 'a number' if kind == 'float' else 'text'}"
                         " is needed", hint=rule["help"], code="Settings")
    if rule["least"] is not None and not value >= rule["least"]:
        raise SetupError(f"{place} is {value}; the least possible is {rule['least']}", hint=rule["help"], code="Settings")
    if rule["one_of"] and value not in rule["one_of"]:
        raise SetupError(f"{place} is '{value}'; possible are {', '.join(rule['one_of'])}", hint=rule["help"], code="Settings")
    if name == "company" and not 1 <= len(value) <= 30:
        raise SetupError(f"{place} has {len(value)} characters; 1 to 30 are possible", hint=rule["help"], code="Settings")
    if name == "accept":
        Losses(value)
    if name == "port" and value > 65535:
        raise SetupError(f"{place} is {value}; the greatest possible is 65535", hint=rule["help"], code="Settings")
    return value
