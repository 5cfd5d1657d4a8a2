"""The settings of a node: one table of names, types, limits, defaults and meanings.

`Config` is that table; the documentation, `appliance config show` and every error are derived from it. Where the values
come from is sources.py's; this knows nothing of what the settings are used for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_type_hints

import msgspec
from msgspec import Meta

from appliance.allowed import describe

PEPPER_BYTES_MIN, PEPPER_BYTES_MAX = 16, 4096
YEAR_S = 365 * 24 * 3600
MASK = "********"


def setting(meaning: str, *, unit: str = "", allowed: str = "", secret: bool = False, **limits: Any) -> Meta:
    """The one declaration of a setting; `allowed` says in words what a pattern or a check cannot."""
    extra: dict[str, Any] = {"unit": unit, "secret": secret}
    if allowed:
        extra["allowed"] = allowed
    return Meta(description=meaning, extra=extra, **limits)


MODEL = r"\A[A-Za-z0-9][A-Za-z0-9._:/-]*\Z"
DURATION = r"\A(-1|[0-9]{1,8}|([0-9]{1,8}(\.[0-9]{1,3})?(ms|s|m|h))+)\Z"
PathText = Annotated[str, Meta(max_length=4000, pattern=r"\A[^\x00-\x1f\x7f]*\Z")]
HOST_NAME = re.compile(r"\A(?=.{1,253}\Z)[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9-]+)*\Z")


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Every setting of the service, valid and ready to use; in the environment the names are upper case."""

    host: Annotated[
        str,
        setting("The address the service listens on.", allowed="an IP address or a host name, without a port"),
    ] = "0.0.0.0"  # noqa: S104  A node serves its network; the keys and the firewall say whom.
    port: Annotated[int, setting("The port the service listens on.", ge=1, le=65535)] = 8000
    ollama_port: Annotated[int, setting("The engine's port on 127.0.0.1.", ge=1, le=65535)] = 11434
    ollama_model: Annotated[
        str,
        setting(
            "The model that answers; pulled at start if it is not there.",
            allowed="a model's name such as qwen2.5:3b",
            min_length=1,
            max_length=256,
            pattern=MODEL,
        ),
    ] = "qwen2.5:3b"
    ollama_keep_alive: Annotated[
        str,
        setting(
            "How long the engine keeps the idle model in memory.",
            allowed="a duration from 1s to 8760h such as 30m or 1h30m, whole seconds, or -1 for ever "
            "(0 would unload the model after each answer)",
            max_length=64,
            pattern=DURATION,
        ),
    ] = "30m"
    ollama_warmup: Annotated[bool, setting("Load the model at start, before /ready is 200.")] = True
    n_ctx: Annotated[
        int, setting("The context of one slot: prompt and answer together.", unit="tokens", ge=128, le=131072)
    ] = 512
    n_threads: Annotated[int, setting("Threads that generate.", unit="threads", ge=1, le=256)] = 4
    n_batch: Annotated[int, setting("Tokens of a prompt that are read at a time.", unit="tokens", ge=8, le=4096)] = 128
    max_tokens: Annotated[
        int,
        setting("Length of an answer when a request names none; less than N_CTX.", unit="tokens", ge=1, le=2048),
    ] = 96
    api_keys_db: Annotated[
        PathText, setting("The file of the API keys (SQLite).", allowed="a file's path", min_length=1)
    ] = "api_keys.db"
    max_concurrent_requests: Annotated[
        int,
        setting(
            "Slots: generations that run at once; the same number as the engine's OLLAMA_NUM_PARALLEL.",
            unit="requests",
            ge=1,
            le=1024,
        ),
    ] = 4
    max_queue_size: Annotated[
        int,
        setting("Requests that may wait for a slot; the next is answered 429.", unit="requests", ge=0, le=10000),
    ] = 16
    max_queue_wait_s: Annotated[
        int, setting("How long a request may wait for a slot.", unit="seconds", ge=1, le=3600)
    ] = 120
    api_key_pepper: Annotated[
        str | None,
        setting(
            "The secret that the stored digests of the keys are made with.",
            allowed=f"a text of {PEPPER_BYTES_MIN} to {PEPPER_BYTES_MAX} bytes (try `openssl rand -hex 32`)",
            secret=True,
        ),
    ] = None
    api_key_pepper_file: Annotated[
        PathText | None,
        setting(
            "A file that holds the pepper, in place of API_KEY_PEPPER. Without either, the first start makes "
            "a pepper and keeps it beside API_KEYS_DB.",
            allowed="a file's path, or empty for none",
        ),
    ] = None
    key_issuance: Annotated[
        Literal["local", "open", "off"],
        setting("Who may call POST /keys/generate: the node itself, everybody, nobody."),
    ] = "local"
    key_limit: Annotated[
        int,
        setting(
            "Active keys beyond which POST /keys/generate makes no more; the command line may.",
            unit="keys",
            ge=1,
            le=100000,
        ),
    ] = 1000
    sse_ping_s: Annotated[
        float,
        setting("A silent stream sends a keep-alive comment this often.", unit="seconds", ge=0.05, le=60),
    ] = 5
    drain_s: Annotated[
        float, setting("How long a stop waits for running generations.", unit="seconds", ge=0, le=600)
    ] = 25
    engine_connect_timeout_s: Annotated[
        float, setting("How long connecting to the engine may take.", unit="seconds", ge=0.05, le=60)
    ] = 2
    engine_first_token_timeout_s: Annotated[
        float,
        setting(
            "How long the engine may take to its first token: loading the model and reading the prompt.",
            unit="seconds",
            ge=0.1,
            le=3600,
        ),
    ] = 180
    engine_stall_timeout_s: Annotated[
        float,
        setting("How long the engine may be silent between two tokens.", unit="seconds", ge=0.1, le=600),
    ] = 60
    generation_timeout_s: Annotated[
        int, setting("How long one whole generation may take.", unit="seconds", ge=1, le=7200)
    ] = 900
    client_timeout_s: Annotated[
        float,
        setting(
            "How long a client may take to send a body or to accept an answer.",
            unit="seconds",
            ge=0.1,
            le=600,
        ),
    ] = 30
    pid_file: Annotated[
        PathText,
        setting(
            "Where the process id is written; empty: API_KEYS_DB with .pid added.",
            allowed="a file's path, or empty",
        ),
    ] = ""
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], setting("The least serious messages that are logged.")
    ] = "info"

    @property
    def bind(self) -> str:
        """HOST and PORT as gunicorn takes them, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def pid_path(self) -> Path:
        return Path(self.pid_file or f"{self.api_keys_db}.pid")

    @property
    def keep_alive(self) -> int | str:
        """OLLAMA_KEEP_ALIVE as the engine's API takes it: seconds as a number, or a text with its units."""
        value = self.ollama_keep_alive
        return value if value[-1].isalpha() else int(value)

    @property
    def keep_alive_s(self) -> float:
        """OLLAMA_KEEP_ALIVE in seconds; infinity for ever."""
        return _duration_s(self.ollama_keep_alive)

    def __repr__(self) -> str:
        """Without the secrets, since a traceback or a log may show it."""
        return f"Config({', '.join(f'{row.field}={row.masked(self)!r}' for row in SETTINGS.values())})"


class Setting(NamedTuple):
    """One row of the table."""

    name: str
    field: str
    type: Any
    default: Any
    allowed: str
    unit: str
    meaning: str
    secret: bool

    def masked(self, config: Config) -> Any:
        """The value of this setting, or a mask if it is a secret that is set."""
        value = getattr(config, self.field)
        return MASK if self.secret and value is not None else value


def _settings() -> Iterator[Setting]:
    hints = get_type_hints(Config, include_extras=True)
    for field in msgspec.structs.fields(Config):
        type_ = hints[field.name]
        meta: Meta = get_args(type_)[-1]
        extra = meta.extra or {}
        yield Setting(
            name=field.name.upper(),
            field=field.name,
            type=type_,
            default=field.default,
            allowed=extra.get("allowed") or describe(type_),
            unit=extra["unit"],
            meaning=meta.description or "",
            secret=extra["secret"],
        )


SETTINGS = {row.name: row for row in _settings()}


def _is_host(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return bool(HOST_NAME.match(text)) and not text.replace(".", "").isdigit()
    return True


def _is_keep_alive(text: str) -> bool:
    return text == "-1" or 1 <= _duration_s(text) <= YEAR_S


def _duration_s(text: str) -> float:
    if text == "-1":
        return inf
    if text.isdigit():
        return int(text)
    parts = re.findall(r"([0-9.]+)(ms|s|m|h)", text)
    return sum(float(number) * UNIT_S[unit] for number, unit in parts)


def _is_pepper(text: str) -> bool:
    """As long as `pepper.obtain` demands, which leaves white space around it out."""
    return len(text.strip().encode()) >= PEPPER_BYTES_MIN and len(text.encode()) <= PEPPER_BYTES_MAX


CHECKS: dict[str, Callable[[Any], bool]] = {
    "API_KEY_PEPPER": _is_pepper,
    "HOST": _is_host,
    "OLLAMA_KEEP_ALIVE": _is_keep_alive,
}
UNIT_S = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
