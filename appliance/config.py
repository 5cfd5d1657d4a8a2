"""The settings of a node: one table of names, types, limits, defaults and meanings, and where values come from.

`Config` is that table; the documentation, `appliance config show` and every error are derived from it. `load` is
the only code of the service that reads the environment, `.env` or a profile, once, at start. It knows nothing of
what the settings are used for.
"""

from __future__ import annotations

import difflib
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_address
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_type_hints

import msgspec
from dotenv.parser import Binding, parse_stream
from msgspec import Meta

from appliance.allowed import describe

PROFILE_BYTES = 65536
SECRET_BYTES = 4096
NEAR = 0.9  # Difflib's ratio: one letter more, less or other in a name of six letters and up.
FOREIGN = frozenset(
    {"LOGLEVEL", "OLLAMA_MODELS"}
)  # Names that others read from a `.env`, one letter from ours.
YEAR_S = 365 * 24 * 3600


def setting(meaning: str, *, unit: str = "", allowed: str = "", secret: bool = False, **limits: Any) -> Meta:
    """The one declaration of a setting; `allowed` says in words what a pattern or a check cannot."""
    extra: dict[str, Any] = {"unit": unit, "secret": secret}
    if allowed:
        extra["allowed"] = allowed
    return Meta(description=meaning, extra=extra, **limits)


PATH = r"\A[^\x00-\x1f\x7f]*\Z"
MODEL = r"\A[A-Za-z0-9][A-Za-z0-9._:/-]*\Z"
DURATION = r"\A(-1|[0-9]{1,8}|([0-9]{1,8}(\.[0-9]{1,3})?(ms|s|m|h))+)\Z"
HOST_NAME = re.compile(r"\A(?=.{1,253}\Z)[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9-]+)*\Z")


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Every setting of the service, valid and ready to use; the names in the environment are the upper case."""

    host: Annotated[
        str,
        setting(
            "The address the service listens on.", allowed="an IP address or a host name, without a port"
        ),
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
            allowed="a duration such as 30m or 1h30m, whole seconds, or -1 for ever; from 1s to 8760h, never 0, "
            "which would unload the model after each answer",
            max_length=64,
            pattern=DURATION,
        ),
    ] = "30m"
    ollama_warmup: Annotated[bool, setting("Load the model at start, before /ready is 200.")] = True
    n_ctx: Annotated[
        int, setting("The context of one slot: prompt and answer together.", unit="tokens", ge=128, le=131072)
    ] = 512
    n_threads: Annotated[int, setting("Threads that generate.", unit="threads", ge=1, le=256)] = 4
    n_batch: Annotated[
        int, setting("Tokens of a prompt that are read at a time.", unit="tokens", ge=8, le=4096)
    ] = 128
    max_tokens: Annotated[
        int,
        setting(
            "Length of an answer when a request names none; less than N_CTX.", unit="tokens", ge=1, le=2048
        ),
    ] = 96
    api_keys_db: Annotated[
        str,
        setting(
            "The file of the API keys (SQLite).",
            allowed="a file's path",
            min_length=1,
            max_length=4000,
            pattern=PATH,
        ),
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
        setting(
            "Requests that may wait for a slot; the next is answered 429.", unit="requests", ge=0, le=10000
        ),
    ] = 16
    max_queue_wait_s: Annotated[
        int, setting("How long a request may wait for a slot.", unit="seconds", ge=1, le=3600)
    ] = 120
    api_key_pepper: Annotated[
        str | None,
        setting(
            "The secret that the stored digests of the keys are made with.",
            allowed="a text of 1 to 4096 bytes",
            secret=True,
        ),
    ] = None
    api_key_pepper_file: Annotated[
        str,
        setting(
            "A file that holds the pepper; then API_KEY_PEPPER is not given. Without either, a pepper is made at "
            "first start beside API_KEYS_DB.",
            allowed="a file's path",
            max_length=4000,
            pattern=PATH,
        ),
    ] = ""
    key_issuance: Annotated[
        Literal["local", "open", "off"],
        setting("Who may call POST /keys/generate: the node itself, everybody, nobody."),
    ] = "local"
    key_limit: Annotated[
        int, setting("Keys that POST /keys/generate may bring into being.", unit="keys", ge=1, le=100000)
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
        str,
        setting(
            "Where the process id is written; empty means API_KEYS_DB with .pid added.",
            allowed="a file's path, or empty",
            max_length=4000,
            pattern=PATH,
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
        """OLLAMA_KEEP_ALIVE as the engine's API takes it: a number is seconds, a string must carry its unit."""
        value = self.ollama_keep_alive
        return value if value[-1].isalpha() else int(value)


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


def _settings() -> Iterator[Setting]:
    hints = get_type_hints(Config, include_extras=True)
    for field in msgspec.structs.fields(Config):
        type_ = hints[field.name]
        meta: Meta = get_args(type_)[1]
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
    """The settings cannot be used. `problems` holds all that is wrong; the text has a line for each."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(problem.sentence for problem in problems))
        self.problems = problems


class Loaded(NamedTuple):
    """`sources` says for each name in the environment's spelling where its value came from."""

    config: Config
    sources: dict[str, str]


class Given(NamedTuple):
    """One value as text, before it is checked."""

    value: str
    source: str
    strength: int = 0


def load(
    profile: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    dotenv: Path | None = Path(".env"),
    read_secret_files: bool = True,
) -> Loaded:
    """Read the settings: the environment beats `.env`, which beats the profile, which beats the defaults.

    profile: a file of NAME=VALUE lines, or None for none. Every name in it must be a setting.
    environ: the environment; names that are no settings are ignored.
    dotenv: a file that need not exist, or None. Names far from any setting belong to others and are ignored.
    read_secret_files: False leaves API_KEY_PEPPER_FILE unopened.

    Raises: ConfigError with everything that is wrong, when anything is.
    """
    problems: list[Problem] = []
    given: dict[str, Given] = {}
    if profile is not None:
        given |= _of_profile(profile, problems)
    if dotenv is not None:
        given |= _of_dotenv(dotenv, problems)
    given |= {name: Given(environ[name], "environment", 3) for name in SETTINGS if name in environ}
    _choose_pepper(given, problems, read_secret_files)

    values = {}
    for name, text in given.items():
        row = SETTINGS[name]
        try:
            values[row.field] = _parse(row, text.value)
        except ValueError:
            problems.append(_wrong_value(row, text))
    _check_together(values, given, problems)
    if problems:
        raise ConfigError(problems)
    sources = {name: given[name].source if name in given else "default" for name in SETTINGS}
    return Loaded(Config(**values), sources)


def _parse(row: Setting, text: str) -> Any:
    """The value that a text means; ValueError if it is not allowed."""
    size = len(text.encode())  # Raises for the lone surrogates that stand for undecodable bytes.
    if row.secret:
        if not 0 < size <= SECRET_BYTES:
            raise ValueError
        return text
    try:
        value = msgspec.convert(text, row.type, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError from error
    if isinstance(value, float) and not isfinite(value):
        raise ValueError
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
    if text == "-1":
        return True
    if text.isdigit():
        return 1 <= int(text) <= YEAR_S
    scale = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
    parts = re.findall(r"([0-9.]+)(ms|s|m|h)", text)
    return 1 <= sum(float(number) * scale[unit] for number, unit in parts) <= YEAR_S


CHECKS: dict[str, Callable[[Any], bool]] = {"HOST": _is_host, "OLLAMA_KEEP_ALIVE": _is_keep_alive}


def _wrong_value(row: Setting, text: Given) -> Problem:
    value = None if row.secret else text.value
    shown = "The value (not shown)" if value is None else _short(value)
    sentence = f"{row.name}: {shown} is not allowed; it must be {row.allowed} ({text.source})."
    return Problem(row.name, sentence, value, row.allowed, text.source)


def _short(text: str) -> str:
    """A value as an error shows it: quoted, on one line, not the whole of a book."""
    return ascii(text) if len(text) <= 80 else f"{ascii(text[:80])} … ({len(text)} characters)"


def _check_together(values: dict[str, Any], given: dict[str, Given], problems: list[Problem]) -> None:
    """What no value shows by itself; a value that is wrong by itself is told of once."""
    wrong = {problem.name for problem in problems}

    def of(name: str) -> tuple[Any, str]:
        row = SETTINGS[name]
        return values.get(row.field, row.default), given[name].source if name in given else "default"

    (max_tokens, whence), (n_ctx, ctx_whence) = of("MAX_TOKENS"), of("N_CTX")
    if not wrong & {"MAX_TOKENS", "N_CTX"} and max_tokens >= n_ctx:
        sentence = (
            f"MAX_TOKENS: {max_tokens} ({whence}) must be less than N_CTX, which is {n_ctx} ({ctx_whence}): "
            "prompt and answer share the context."
        )
        problems.append(Problem("MAX_TOKENS", sentence, str(max_tokens), "less than N_CTX", whence))
    (port, whence), (ollama_port, ollama_whence) = of("PORT"), of("OLLAMA_PORT")
    if not wrong & {"PORT", "OLLAMA_PORT"} and port == ollama_port:
        sentence = (
            f"PORT: {port} ({whence}) is also OLLAMA_PORT ({ollama_whence}): "
            "the service and the engine cannot share a port."
        )
        problems.append(Problem("PORT", sentence, str(port), "another port than OLLAMA_PORT", whence))


def _choose_pepper(given: dict[str, Given], problems: list[Problem], read: bool) -> None:
    """Make API_KEY_PEPPER of API_KEY_PEPPER_FILE.

    1. Only one of them is given: that one. An empty API_KEY_PEPPER_FILE is none.
    2. Both, from places of different strength: the stronger; the other is as if never given.
    3. Both from the same place: an error, since nobody could say which is meant.
    """
    file = given.get("API_KEY_PEPPER_FILE")
    if file is None or not file.value:
        return
    pepper = given.get("API_KEY_PEPPER")
    if pepper and pepper.strength > file.strength:
        del given["API_KEY_PEPPER_FILE"]
        return
    if pepper and pepper.strength == file.strength:
        sentence = f"API_KEY_PEPPER and API_KEY_PEPPER_FILE are both given ({file.source}); keep one of them."
        problems.append(Problem("API_KEY_PEPPER", sentence, source=file.source))
        return
    given.pop("API_KEY_PEPPER", None)
    if read:
        _read_pepper(file, given, problems)


def _read_pepper(file: Given, given: dict[str, Given], problems: list[Problem]) -> None:
    try:
        text = _read(Path(file.value), SECRET_BYTES)
    except (OSError, ValueError) as error:
        sentence = (
            f"API_KEY_PEPPER_FILE: {_short(file.value)} cannot be used: {_reason(error)} ({file.source})."
        )
        problems.append(Problem("API_KEY_PEPPER_FILE", sentence, file.value, "a readable file", file.source))
        return
    given["API_KEY_PEPPER"] = Given(text.removesuffix("\n").removesuffix("\r"), f"file {file.value}")


def _read(path: Path, limit: int) -> str:
    """The text of a small file. Raises: OSError; ValueError if it is too large or not UTF-8."""
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"it is larger than {limit} bytes")
    return data.decode()


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 at byte {error.start}"
    return str(error)


# One line of a profile, of the kind that systemd's EnvironmentFile= and python-dotenv read alike. What they read
# differently is refused: backslashes, a quote within an unquoted value, text after a quoted one, `export`, blanks
# around `=`, comments behind a value.
LINE = re.compile(
    r"""\A(?P<name>[A-Za-z_][A-Za-z0-9_]*)=(
        '[^'\\\x00-\x1f\x7f]*' | "[^"\\\x00-\x1f\x7f]*" |
        (?!\s) ( (?! \s+\# ) [^'"\\\x00-\x1f\x7f] )* )[ \t]*\Z""",
    re.VERBOSE,
)


def _of_profile(path: Path, problems: list[Problem]) -> dict[str, Given]:
    """The values of a profile, whose lines and names are all ours."""
    source = f"profile {path}"
    given: dict[str, Given] = {}
    for number, name, value, original in _bindings(path, source, problems):
        if not LINE.match(original):
            problems.append(_bad_line(path, number, source))
            continue
        if name not in SETTINGS:
            problems.append(_unknown(name, f"{path}, line {number}", source))
            continue
        given[name] = Given(value or "", source, 1)
    return given


def _of_dotenv(path: Path, problems: list[Problem]) -> dict[str, Given]:
    """The settings in a `.env`, which may hold other programs' names, but no misspelt one of ours."""
    given: dict[str, Given] = {}
    if not path.exists():
        return given
    for number, name, value, _ in _bindings(path, str(path), problems):
        if name in SETTINGS and value is not None:
            given[name] = Given(value, str(path), 2)
        elif name in SETTINGS:
            problems.append(_bad_line(path, number, str(path)))
        elif name not in FOREIGN and difflib.get_close_matches(name.upper(), SETTINGS, 1, NEAR):
            problems.append(_unknown(name, f"{path}, line {number}", str(path)))
    return given


def _bindings(path: Path, source: str, problems: list[Problem]) -> Iterator[tuple[int, str, str | None, str]]:
    """Line number, name, value and the line itself of each assignment in a file; what is none is a problem."""
    try:
        text = _read(path, PROFILE_BYTES)
    except (OSError, ValueError) as error:
        problems.append(Problem(str(path), f"{path}: cannot be read: {_reason(error)}.", source=source))
        return
    for binding in parse_stream(io.StringIO(text, newline="")):
        number = _line_number(binding)
        if binding.error:
            problems.append(_bad_line(path, number, source))
        elif binding.key is not None:
            yield number, binding.key, binding.value, binding.original.string.strip("\r\n")


def _line_number(binding: Binding) -> int:
    """Where the assignment is; python-dotenv counts the blank lines before it as its own."""
    string = binding.original.string
    return binding.original.line + string[: len(string) - len(string.lstrip())].count("\n")


def _bad_line(path: Path, number: int, source: str) -> Problem:
    """The line itself is not shown: it may hold a secret."""
    sentence = f"{path}, line {number}: not NAME=VALUE, or not in a way that systemd reads alike."
    return Problem(str(path), sentence, allowed="NAME=VALUE", source=source)


def _unknown(name: str, place: str, source: str) -> Problem:
    near = difflib.get_close_matches(name.upper(), SETTINGS, 1, 0.6)
    hint = f"the nearest is {near[0]}" if near else "none is near it; see `appliance config show`"
    return Problem(name, f"{place}: {name} is no setting; {hint}.", source=source)


__all__ = ["SETTINGS", "Config", "ConfigError", "Loaded", "Problem", "Setting", "load"]
