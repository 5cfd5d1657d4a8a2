"""The settings of a node: one table of names, types, limits, defaults and meanings; where values come from.

`Config` is that table: the documentation, `appliance config show` and every error are derived from it. `load`
is the only code of the service that reads the environment, `.env` or a profile, once, at start.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_address
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_type_hints

import msgspec
from msgspec import Meta

from appliance.allowed import describe
from appliance.envfile import Assignment, lenient, read_text, strict

PROFILE_BYTES = 65536
PEPPER_BYTES_MIN, PEPPER_BYTES_MAX = 16, 4096
YEAR_S = 365 * 24 * 3600
MASK = "********"
NEAR = 0.9  # difflib's ratio: a letter too many, too few or wrong in a name of some length
FOREIGN = frozenset({"LOGLEVEL", "OLLAMA_MODELS"})  # names of other programs that are this near to ours
DEFAULT, PROFILE, DOTENV, ENVIRONMENT = range(4)  # the strength of a value


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


class Problem(NamedTuple):
    """One thing that is wrong; `value` is None where there is none, or where it is a secret."""

    name: str
    sentence: str
    value: str | None = None
    allowed: str | None = None
    source: str | None = None


class ConfigError(Exception):
    """The settings cannot be used. `problems` holds all that is wrong; the text has a line each."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(problem.sentence for problem in problems))
        self.problems = problems


class Loaded(NamedTuple):
    """`sources` says of each name, as the environment spells it, where its value came from."""

    config: Config
    sources: dict[str, str]


class Given(NamedTuple):
    """One value as text, before it is checked."""

    value: str
    source: str
    strength: int


def load(
    profile: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    dotenv: Path | None = Path(".env"),
) -> Loaded:
    """Read the settings: the environment beats `.env`, which beats the profile, which beats the defaults.

    profile: a file of NAME=VALUE lines, or None. Every name in it must be a setting.
    environ: the environment; names that are no settings are ignored.
    dotenv: a file that need not exist, or None. A name that is no setting, nor nearly one, is ignored.

    Raises: ConfigError with everything that is wrong, when anything is.
    """
    problems: list[Problem] = []
    given: dict[str, Given] = {}
    if profile is not None:
        given |= _of_profile(profile, problems)
    if dotenv is not None:
        given |= _of_dotenv(dotenv, problems)
    given |= {name: Given(environ[name], "environment", ENVIRONMENT) for name in SETTINGS if name in environ}
    _choose_pepper(given, problems)
    values = dict(_parsed(given, problems))
    _check_together(values, given, problems)
    if problems:
        raise ConfigError(problems)
    sources = {name: given[name].source if name in given else "default" for name in SETTINGS}
    return Loaded(Config(**values), sources)


def _of_profile(path: Path, problems: list[Problem]) -> dict[str, Given]:
    given: dict[str, Given] = {}
    source = f"profile {path}"
    for assignment in strict(_text_of(path, source, problems) or ""):
        if assignment.name is None:
            problems.append(_bad_line(path, assignment, source))
        elif assignment.name not in SETTINGS:
            problems.append(_unknown(assignment.name, path, assignment, source))
        else:
            given[assignment.name] = Given(assignment.value, source, PROFILE)
    return given


def _of_dotenv(path: Path, problems: list[Problem]) -> dict[str, Given]:
    """A `.env` may hold other programs' names, but no misspelt one of ours."""
    given: dict[str, Given] = {}
    if not os.path.isfile(path):  # some people's `.env` is the directory of a virtualenv
        return given
    for assignment in lenient(_text_of(path, str(path), problems) or ""):
        if assignment.name is None:
            problems.append(_bad_line(path, assignment, str(path)))
        elif assignment.name in SETTINGS:
            given[assignment.name] = Given(assignment.value, str(path), DOTENV)
        elif assignment.name not in FOREIGN and _nearest(assignment.name, NEAR):
            problems.append(_unknown(assignment.name, path, assignment, str(path)))
    return given


def _text_of(path: Path, source: str, problems: list[Problem]) -> str | None:
    try:
        return read_text(path, PROFILE_BYTES)
    except (OSError, ValueError) as error:
        sentence = f"{path}: cannot be read: {_reason(error)}."
        problems.append(Problem(str(path), sentence, source=source))
        return None


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    return str(error)


def _bad_line(path: Path, assignment: Assignment, source: str) -> Problem:
    """The line itself is not shown: it may hold a secret."""
    sentence = (
        f"{path}, line {assignment.line}: not NAME=VALUE. No export, blanks around =, backslash or comment "
        "behind the value; quote the whole value or nothing."
    )
    return Problem(f"line {assignment.line}", sentence, allowed="NAME=VALUE", source=source)


def _unknown(name: str, path: Path, assignment: Assignment, source: str) -> Problem:
    near = _nearest(name, 0.6)
    hint = f"the nearest is {near}" if near else "`appliance config show` lists them"
    sentence = f"{path}, line {assignment.line}: {_short(name)} is no setting; {hint}."
    return Problem(name, sentence, allowed=near, source=source)


def _nearest(name: str, likeness: float) -> str | None:
    near = difflib.get_close_matches(name.upper(), SETTINGS, 1, likeness)
    return near[0] if near else None


def _choose_pepper(given: dict[str, Given], problems: list[Problem]) -> None:
    """Leave at most one of API_KEY_PEPPER and API_KEY_PEPPER_FILE.

    1. An empty API_KEY_PEPPER_FILE is none.
    2. Both, from places of different strength: the stronger, as if the other had never been given.
    3. Both from the same place: an error, since nobody could say which is meant.
    """
    file, pepper = given.get("API_KEY_PEPPER_FILE"), given.get("API_KEY_PEPPER")
    if file is not None and not file.value:
        del given["API_KEY_PEPPER_FILE"]
        return
    if file is None or pepper is None:
        return
    if pepper.strength == file.strength:
        sentence = f"API_KEY_PEPPER: API_KEY_PEPPER_FILE is given too ({file.source}); keep one of them."
        problems.append(Problem("API_KEY_PEPPER", sentence, source=file.source))
    del given["API_KEY_PEPPER_FILE" if pepper.strength > file.strength else "API_KEY_PEPPER"]


def _parsed(given: dict[str, Given], problems: list[Problem]) -> Iterator[tuple[str, Any]]:
    """Pairs of a field and its value; what is not allowed is a problem."""
    for name, text in given.items():
        row = SETTINGS[name]
        try:
            yield row.field, _parse(row, text.value)
        except ValueError:
            problems.append(_wrong_value(row, text))


def _parse(row: Setting, text: str) -> Any:
    """The value that a text means; ValueError if it is not allowed."""
    text.encode()  # raises for the lone surrogates that stand for undecodable bytes
    value = msgspec.convert(text, row.type, strict=False)  # limits refuse NaN as well
    check = CHECKS.get(row.name)
    if check is not None and not check(value):
        raise ValueError
    return value


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


def _wrong_value(row: Setting, text: Given) -> Problem:
    value = None if row.secret else text.value
    shown = "the value (not shown)" if value is None else _short(value)
    sentence = f"{row.name}: {shown} is not allowed; it must be {row.allowed} ({text.source})."
    return Problem(row.name, sentence, value, row.allowed, text.source)


def _short(text: str) -> str:
    """A value as an error shows it: on one line, in plain ASCII, not the whole of a book."""
    return ascii(text) if len(text) <= 80 else f"{text[:80]!a} … ({len(text)} characters)"


def _check_together(values: dict[str, Any], given: dict[str, Given], problems: list[Problem]) -> None:
    """What no value shows by itself; a value that is wrong by itself is told of once."""
    wrong = {problem.name for problem in problems}

    def told(name: str) -> tuple[Any, str]:
        row = SETTINGS[name]
        return values.get(row.field, row.default), given[name].source if name in given else "default"

    (max_tokens, source), (n_ctx, ctx_source) = told("MAX_TOKENS"), told("N_CTX")
    if not wrong & {"MAX_TOKENS", "N_CTX"} and max_tokens >= n_ctx:
        sentence = (
            f"MAX_TOKENS: {max_tokens} ({source}) must be less than N_CTX, which is {n_ctx} ({ctx_source}): "
            "prompt and answer share the context."
        )
        problems.append(Problem("MAX_TOKENS", sentence, str(max_tokens), "less than N_CTX", source))
    (port, source), (ollama_port, ollama_source) = told("PORT"), told("OLLAMA_PORT")
    if not wrong & {"PORT", "OLLAMA_PORT"} and port == ollama_port:
        sentence = (
            f"PORT: {port} ({source}) is OLLAMA_PORT too ({ollama_source}): "
            "the service and the engine cannot share a port."
        )
        problems.append(Problem("PORT", sentence, str(port), "another port than OLLAMA_PORT", source))
