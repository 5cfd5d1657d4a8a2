"""Profiles and `.env` files: which lines and names they may hold."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path

import pytest
from dotenv import dotenv_values
from hypothesis import assume, example, given
from hypothesis import strategies as st

from appliance.envfile import lenient, strict
from appliance.sources import ConfigError, load


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    return tmp_path / "node.env"


def refusal(profile: Path | None = None, dotenv: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(profile, {}, dotenv)
    return str(caught.value)


def test_a_profile_has_comments_blank_lines_and_quotes(profile):
    profile.write_text(
        "# of a node\n\n  # indented\nHOST='::1'\r\n"
        'API_KEYS_DB="/srv/my keys.db"\nPID_FILE=/run/a b#c$HOME.pid  \nOLLAMA_KEEP_ALIVE=1h'
    )
    config = load(profile, {}, None).config
    assert (config.host, config.api_keys_db) == ("::1", "/srv/my keys.db")
    assert (config.pid_file, config.ollama_keep_alive) == ("/run/a b#c$HOME.pid", "1h")


def test_the_last_of_two_lines_with_one_name_counts(profile):
    profile.write_text("PORT=1\nPORT=2\n")
    assert load(profile, {}, None).config.port == 2


@pytest.mark.parametrize(
    "line",
    [
        "PORT",
        "PORT 8000",
        "PORT: 8000",
        "=8000",
        "PORT =8000",
        "PORT= 8000",
        " PORT=8000",
        "export PORT=8000",
        "PORT=8000 # the web",
        "PORT='8000",
        "PORT='8000' # the web",
        "PORT='80'00",
        'PORT=80"00"',
        "PORT=80\\00",
        'PORT="80\\n"',
        "PORT=80\x0000",
        "PORT=80\t00",
        "PORT=8000\u00a0",
        "; PORT=8000",
        "# a comment that goes on in old versions of systemd \\",
        "'PORT'=8000",
    ],
)
def test_a_line_that_readers_differ_on_is_refused_by_its_number(profile, line):
    profile.write_text(f"# node\n\n{line}\nN_CTX=1024\n")
    assert refusal(profile).startswith(f"{profile}, line 3: not NAME=VALUE.")


def as_systemd_reads(line: str) -> str:
    """The value by the rules of EnvironmentFile=, for a line without a backslash or a newline."""
    value, quote, is_bare = "", "", False
    for char in line.partition("=")[2]:
        if quote:
            value, quote = (value, "") if char == quote else (value + char, quote)
        elif not is_bare and char in "'\"":
            quote = char
        elif is_bare or char not in " \t":
            value, is_bare = value + char, True
    return value.rstrip(" \t") if is_bare else value


@given(st.text("ab1'\"$`;#!&=\u00a0é \t", max_size=12).map("PORT={}".format))
@example("PORT=a  b \t")
@example("PORT=a#b #")
@example("PORT=''")
def test_accepted_lines_mean_the_same_to_systemd_and_to_python_dotenv(line):
    (assignment,) = strict(line)
    assume(assignment.name)
    assert assignment.value == as_systemd_reads(line)
    assert dotenv_values(stream=io.StringIO(line), interpolate=False) == {"PORT": assignment.value}


@given(st.text(), st.sampled_from([strict, lenient]))
def test_no_text_breaks_a_reader_and_line_numbers_stay_within_it(text, read):
    lines = text.count("\n") + text.count("\r") + 1
    assert all(1 <= assignment.line <= lines for assignment in read(text))


@given(st.binary())
@example(b"\xef\xbb\xbfPORT=1")
def test_any_bytes_as_a_profile_are_settings_or_a_config_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.env"
    path.write_bytes(data)
    with suppress(ConfigError):
        load(path, {}, path)


def test_an_unknown_name_is_an_error_with_the_nearest_known_one(profile):
    profile.write_text("N_CTX=1024\nMAX_TOKEN=9\n")
    assert refusal(profile) == f"{profile}, line 2: 'MAX_TOKEN' is no setting; the nearest is MAX_TOKENS."


def test_an_unknown_name_far_from_all_says_where_the_known_ones_are(profile):
    profile.write_text("XYZZY=1\n")
    assert "`appliance config show` lists them" in refusal(profile)


def test_names_in_lower_case_are_unknown(profile):
    profile.write_text("port=9000\n")
    assert "the nearest is PORT" in refusal(profile)


@pytest.mark.parametrize(
    "line", ["API_KEY_PEPPR=hunter2", "API_KEY_PEPPER = hunter2", "hunter2", "API_KEY_PEPPER='hunter2"]
)
def test_a_line_that_is_refused_does_not_show_a_secret(profile, line):
    profile.write_text(line)
    if line == "hunter2":
        assert "line 1" in refusal(profile)
    assert "hunter2" not in refusal(profile)


def test_a_missing_profile_is_named(profile):
    assert refusal(profile) == f"{profile}: cannot be read: No such file or directory."


def test_a_directory_is_no_profile(tmp_path):
    assert refusal(tmp_path) == f"{tmp_path}: cannot be read: Is a directory."


def test_a_profile_without_end_is_not_read_to_its_end():
    assert refusal(Path("/dev/zero")) == "/dev/zero: cannot be read: it is larger than 65536 bytes."


def test_a_profile_that_is_not_utf8_says_where(profile):
    profile.write_bytes(b"HOST=\xff\n")
    assert "byte 5 is not UTF-8" in refusal(profile)


def test_a_byte_order_mark_is_refused_since_systemd_takes_it_for_a_part_of_the_name(profile):
    profile.write_bytes(b"\xef\xbb\xbfPORT=1\n")
    assert "byte order mark" in refusal(profile)


def test_files_and_values_are_judged_together(profile):
    profile.write_text("MAX_TOKEN=9\nPORT\nN_CTX=1\n")
    assert len(refusal(profile).split("\n")) == 3


def test_an_env_file_may_hold_other_programs_names_and_manners(tmp_path):
    dotenv = tmp_path / ".env"
    dotenv.write_text(
        "export N_CTX=1024 # tokens\nDATABASE_URL='postgres://x'\nKEY=\"a\nb\"\nDB_HOST=x\nREPORT=1\n"
        "OLLAMA_HOST=127.0.0.1\nOLLAMA_MODELS=/models\nOLLAMA_NUM_PARALLEL=4\nLOGLEVEL=x\nN = 1\nPORTS=1,2\n"
        "API_KEY=x\nLOG_FILE=x\nHOSTNAME=x\nMAX_WORKERS=3\nOLLAMA_DEBUG=1\nSECRET=${PATH}\n"
    )
    assert load(None, {}, dotenv).config.n_ctx == 1024


@pytest.mark.parametrize("name", ["MAX_TOKEN", "N_THREAD", "n_ctx", "OLLAMA_KEEPALIVE", "API_KEY_PEPER", "port"])
def test_a_near_miss_in_an_env_file_is_an_error(tmp_path, name):
    dotenv = tmp_path / ".env"
    dotenv.write_text(f"A=1\n\n{name}=1\n")
    assert f"{dotenv}, line 3: '{name}' is no setting; the nearest is " in refusal(dotenv=dotenv)


@pytest.mark.parametrize("line", ["PORT", "PORT='80", "=80"])
def test_a_broken_line_in_an_env_file_is_refused_by_its_number(tmp_path, line):
    dotenv = tmp_path / ".env"
    dotenv.write_text(f"\n\nA=1\n\n{line}\n")
    assert refusal(dotenv=dotenv).startswith(f"{dotenv}, line 5: not NAME=VALUE.")


def test_nothing_is_expanded_in_an_env_file(tmp_path):
    dotenv = tmp_path / ".env"
    dotenv.write_text("API_KEYS_DB=${HOME}/keys.db\n")
    assert load(None, {"HOME": "/root"}, dotenv).config.api_keys_db == "${HOME}/keys.db"
