"""What a setting may be, and what is said when it is something else."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from appliance.config import SETTINGS, Config
from appliance.sources import ConfigError, load

ANY_TEXT = st.one_of(
    st.text(st.characters()),  # lone surrogates too, as undecodable bytes in an environment become
    st.integers().map(str),
    st.floats().map(str),
    st.from_regex(r"-?[0-9.]{1,9}(ms|s|m|h)?", fullmatch=True),
)


def of(**environ: str) -> Config:
    return load(None, environ, None).config


def problems(**environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        of(**environ)
    return str(caught.value).split("\n")


def config_or_error(name: str, text: str) -> Config | ConfigError:
    try:
        return of(**{name: text})
    except ConfigError as error:
        return error


@given(st.sampled_from(sorted(SETTINGS)), ANY_TEXT)
@example("DRAIN_S", "nan")
@example("OLLAMA_KEEP_ALIVE", "99999999h99999999h")
@example("API_KEYS_DB", "\ud800")
@example("HOST", "1" * 300)
def test_any_text_for_any_setting_is_a_config_or_an_error_that_names_it(name, text):
    outcome = config_or_error(name, text)
    if isinstance(outcome, ConfigError):
        assert [problem.name for problem in outcome.problems] == [name]
        assert str(outcome).startswith(f"{name}: ")
        return
    str(getattr(outcome, name.lower())).encode()


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("PORT", 1, 65535),
        ("OLLAMA_PORT", 1, 65535),
        ("N_CTX", 128, 131072),
        ("N_THREADS", 1, 256),
        ("N_BATCH", 8, 4096),
        ("MAX_CONCURRENT_REQUESTS", 1, 1024),
        ("MAX_QUEUE_SIZE", 0, 10000),
        ("MAX_QUEUE_WAIT_S", 1, 3600),
        ("KEY_LIMIT", 1, 100000),
        ("SSE_PING_S", 0.05, 60),
        ("DRAIN_S", 0, 600),
        ("ENGINE_CONNECT_TIMEOUT_S", 0.05, 60),
        ("ENGINE_FIRST_TOKEN_TIMEOUT_S", 0.1, 3600),
        ("ENGINE_STALL_TIMEOUT_S", 0.1, 600),
        ("GENERATION_TIMEOUT_S", 1, 7200),
        ("CLIENT_TIMEOUT_S", 0.1, 600),
    ],
)
def test_numbers_have_these_limits_and_the_error_says_them(name, least, most):
    for inside in (least, most):
        assert getattr(of(**{name: str(inside)}), name.lower()) == inside
    for outside in (least - 0.01 if isinstance(least, float) else least - 1, most + 1):
        (sentence,) = problems(**{name: str(outside)})
        assert sentence.startswith(f"{name}: '{outside}' is not allowed; it must be ")
        assert f"from {least} to {most} (environment)." in sentence


def test_max_tokens_goes_from_1_to_2048():
    assert of(MAX_TOKENS="2048", N_CTX="4096").max_tokens == 2048
    assert "from 1 to 2048" in problems(MAX_TOKENS="2049", N_CTX="4096")[0]
    assert "from 1 to 2048" in problems(MAX_TOKENS="0")[0]


@pytest.mark.parametrize("text", ["nan", "NaN", "inf", "-inf", "Infinity", "1e999", "", " 5", "five", "5s"])
def test_seconds_are_finite_numbers_and_nothing_else(text):
    assert "a number from 0.05 to 60" in problems(SSE_PING_S=text)[0]


@pytest.mark.parametrize("text", ["", "8000.5", " 8000", "8_000", "0x1F40", "٨٠", "8000 # web"])
def test_whole_numbers_are_whole_and_nothing_else(text):
    assert "a whole number from 1 to 65535" in problems(PORT=text)[0]


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("TRUE", True), ("1", True), ("false", False), ("0", False)]
)
def test_flags_are_true_or_false(text, value):
    assert of(OLLAMA_WARMUP=text).ollama_warmup is value


@pytest.mark.parametrize("text", ["yes", "", "on", "2", "truely"])
def test_other_words_are_no_flag(text):
    assert "must be true or false" in problems(OLLAMA_WARMUP=text)[0]


def test_choices_are_named_in_the_error():
    assert "one of local, open, off" in problems(KEY_ISSUANCE="everybody")[0]
    assert "one of debug, info, warning, error" in problems(LOG_LEVEL="INFO")[0]


@pytest.mark.parametrize(
    ("text", "sent", "seconds"),
    [
        ("30m", "30m", 1800),
        ("1h30m", "1h30m", 5400),
        ("1.5h", "1.5h", 5400),
        ("1500ms", "1500ms", 1.5),
        ("600", 600, 600),
        ("-1", -1, inf),
    ],
)
def test_keep_alive_reaches_the_engine_in_its_own_form_and_us_in_seconds(text, sent, seconds):
    config = of(OLLAMA_KEEP_ALIVE=text)
    assert (config.keep_alive, config.keep_alive_s) == (sent, seconds)


@pytest.mark.parametrize(
    "text", ["0", "00", "0s", "0h0m", "0.0s", "999ms", "-2", "-1m", "30 m", "m", "9000h", "1.h", "", "30m\n"]
)
def test_keep_alive_refuses_what_would_unload_the_model_or_is_no_duration(text):
    assert "-1 for ever" in problems(OLLAMA_KEEP_ALIVE=text)[0]


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1", "::", "fe80::1", "localhost", "pi1.lan", "pi-1"])
def test_a_host_is_an_address_or_a_name(host):
    assert of(HOST=host).host == host


@pytest.mark.parametrize("host", ["", "0.0.0.0:8000", "[::]", "1.2.3", "1.2.3.256", "http://pi", "pi 1", "-pi", "pi\n"])
def test_a_host_with_a_port_or_a_wrong_address_is_refused(host):
    assert "an IP address or a host name, without a port" in problems(HOST=host)[0]


def test_bind_puts_an_ipv6_address_in_brackets():
    assert of(HOST="::", PORT="1").bind == "[::]:1"
    assert of(HOST="127.0.0.1", PORT="1").bind == "127.0.0.1:1"


def test_the_pid_file_lies_beside_the_keys_unless_it_is_named():
    assert str(of(API_KEYS_DB="/var/lib/x/keys.db").pid_path) == "/var/lib/x/keys.db.pid"
    assert str(of(PID_FILE="/run/x.pid").pid_path) == "/run/x.pid"


def test_an_answer_must_leave_room_for_a_prompt():
    (sentence,) = problems(MAX_TOKENS="512")
    assert sentence == (
        "MAX_TOKENS: 512 (environment) must be less than N_CTX, which is 512 (default): "
        "prompt and answer share the context."
    )
    assert of(MAX_TOKENS="511").max_tokens == 511


def test_the_service_and_the_engine_cannot_share_a_port():
    assert "the service and the engine cannot share a port" in problems(PORT="11434")[0]


def test_it_tells_of_everything_that_is_wrong_at_once():
    names = [line.partition(":")[0] for line in problems(PORT="0", N_CTX="1", LOG_LEVEL="x", MAX_TOKENS="600")]
    assert sorted(names) == ["LOG_LEVEL", "N_CTX", "PORT"]


def test_a_problem_has_its_parts_for_programs():
    with pytest.raises(ConfigError) as caught:
        of(PORT="0")
    (problem,) = caught.value.problems
    assert (problem.name, problem.value) == ("PORT", "0")
    assert (problem.allowed, problem.source) == ("a whole number from 1 to 65535", "environment")


def test_a_long_value_is_shown_by_its_beginning():
    (sentence,) = problems(PORT="9" * 5000)
    assert "(5000 characters)" in sentence
    assert len(sentence) < 250


@pytest.mark.parametrize("pepper", ["", "hunter2", " " * 40, "hunter2" * 1000, "hunter2-hunter2-hunter2\udc80"])
def test_a_wrong_pepper_is_refused_and_never_shown(pepper):
    with pytest.raises(ConfigError) as caught:
        of(API_KEY_PEPPER=pepper)
    assert "API_KEY_PEPPER: the value (not shown) is not allowed" in str(caught.value)
    assert "hunter2" not in f"{caught.value!r} {caught.value.problems}"


def test_a_config_that_is_printed_shows_no_secret():
    loaded = load(None, {"API_KEY_PEPPER": "hunter2-hunter2-hunter2"}, None)
    assert "hunter2" not in f"{loaded} {loaded.config!r} {loaded.config}"
    assert "api_key_pepper='********'" in repr(loaded.config)
