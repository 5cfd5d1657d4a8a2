"""Where the settings of a node come from: the environment, `.env`, a profile, in that order of strength.

`load` is the only code of the service that reads them, once, at start; what may be wrong is said all at once."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from appliance.config import CHECKS, SETTINGS, Config, Setting
from appliance.envfile import Assignment, lenient, read_text, strict

PROFILE_BYTES = 65536
NEAR = 0.9  # difflib's ratio: a letter too many, too few or wrong in a name of some length
FOREIGN = frozenset({"LOGLEVEL", "OLLAMA_MODELS"})  # names of other programs that are this near to ours
DEFAULT, PROFILE, DOTENV, ENVIRONMENT = range(4)  # the strength of a value


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
