"""A tuned profile that makes no sense is refused in a sentence that names file, field, value and what is allowed."""

from __future__ import annotations

import sys
from copy import deepcopy
from typing import Any

import msgspec
import pytest
import roles
from ansible.errors import AnsibleFilterError

from bench.inventory import tuned_profile as bench_profile

sys.path.insert(0, str(roles.ROOT / "ansible" / "filter_plugins"))
import tuned_profile

FILE = "inventory/host_vars/pi1/tuned.yml"
PROFILE: dict[str, Any] = {
    "format": 1,
    "env": {"N_CTX": 1024, "N_THREADS": 4, "N_BATCH": 128, "MAX_TOKENS": 128, "OLLAMA_KEEP_ALIVE": "30m"},
    "measured": {"decode_tokens_per_s": {"median": 5.31, "ci95": [5.27, 5.36], "n": 12}},
    "provenance": {"run": "2026-01-31T12-00-00Z", "at": "2026-01-31T12:00:00Z", "model": "qwen2.5:3b", "board": None},
}


def problems(**env: Any) -> list[str]:
    return tuned_profile.tuned_profile_problems({**PROFILE, "env": env}, FILE)


def problems_without(part: str) -> list[str]:
    return tuned_profile.tuned_profile_problems({key: PROFILE[key] for key in PROFILE if key != part}, FILE)


@pytest.mark.parametrize("profile", [None, PROFILE], ids=["none", "a right one"])
def test_no_profile_and_a_right_one_are_fine(profile):
    assert tuned_profile.tuned_profile_problems(profile, FILE) == []


def test_a_value_out_of_range_is_named_with_its_limits():
    assert problems(N_CTX=64) == [
        f"{FILE}: tuned_profile.env.N_CTX is 64; allowed is a whole number from 128 to 131072."
    ]


@pytest.mark.parametrize("value", ["1024", 10.5, 1024.0, True, None, [1024]])
def test_a_value_of_the_wrong_type_is_refused(value):
    (sentence,) = problems(N_CTX=value)
    assert "tuned_profile.env.N_CTX is " in sentence


def test_an_unknown_knob_is_named_with_the_known_ones():
    (sentence,) = problems(N_CTX=1024, N_CTXX=1024)
    assert "tuned_profile.env has N_CTXX, which is unknown" in sentence
    assert "N_CTX, N_THREADS" in sentence


def test_another_format_is_refused():
    (sentence,) = tuned_profile.tuned_profile_problems({**PROFILE, "format": 2}, FILE)
    assert sentence == f"{FILE}: tuned_profile.format is 2; allowed is 1."


@pytest.mark.parametrize("part", PROFILE)
def test_a_missing_part_is_named(part):
    (sentence,) = problems_without(part)
    assert f"tuned_profile lacks {part};" in sentence


@pytest.mark.parametrize("profile", ["nonsense", 7, [], True])
def test_something_else_entirely_is_refused(profile):
    (sentence,) = tuned_profile.tuned_profile_problems(profile, FILE)
    assert "allowed is format, env, measured and provenance" in sentence


def test_everything_that_is_wrong_is_said_at_once():
    assert len(problems(N_CTX=64, N_THREADS=0, OLLAMA_KEEP_ALIVE="soon")) == 3


@pytest.mark.parametrize("env", [{"N_CTX": 128, "MAX_TOKENS": 128}, {"MAX_TOKENS": 512}], ids=["both", "the default"])
def test_an_answer_as_long_as_the_context_is_refused(env):
    (sentence,) = problems(**env)
    assert "MAX_TOKENS must be less than N_CTX" in sentence


def test_a_bare_off_is_answered_with_the_quotes_it_lacks():
    (sentence,) = problems(OLLAMA_FLASH_ATTENTION=False)
    assert "OLLAMA_FLASH_ATTENTION is false" in sentence
    assert "in quotes" in sentence


def test_a_quantized_cache_without_flash_attention_is_refused():
    (sentence,) = problems(OLLAMA_KV_CACHE_TYPE="q8_0", OLLAMA_FLASH_ATTENTION="off")
    assert "needs flash attention" in sentence


def test_a_value_without_end_is_cut_in_the_sentence():
    (sentence,) = problems(OLLAMA_KEEP_ALIVE="9" * 10_000)
    assert len(sentence) < 300


def test_an_interval_of_one_number_is_refused():
    profile = deepcopy(PROFILE)
    profile["measured"]["decode_tokens_per_s"]["ci95"] = [5.27]
    (sentence,) = tuned_profile.tuned_profile_problems(profile, FILE)
    assert "measured.decode_tokens_per_s.ci95 is [5.27]; allowed is two numbers" in sentence


def test_a_controller_without_jsonschema_is_told_to_install_it(monkeypatch):
    monkeypatch.setattr(tuned_profile, "Draft202012Validator", None)
    with pytest.raises(AnsibleFilterError, match="make fleet"):
        tuned_profile.tuned_profile_problems(PROFILE, FILE)


def test_a_file_that_is_not_yaml_is_named_with_its_line(tmp_path):
    tuned = tmp_path / "host_vars" / "pi1" / "tuned.yml"
    tuned.parent.mkdir(parents=True)
    tuned.write_text("tuned_profile:\n  env: {N_CTX: [1\n")
    (sentence,) = tuned_profile.unreadable_profiles(["pi1", "pi2"], [str(tmp_path / "hosts.yml")])
    assert sentence.startswith(f"{tuned}, line 3: it is not YAML")
    tuned.write_text("tuned_profile: {}")
    assert tuned_profile.unreadable_profiles(["pi1", "pi2"], [str(tmp_path)]) == []


NOW = {"model": "qwen2.5:3b", "model_digest": "357c53fb", "ollama": "0.34.4", "board": "Raspberry Pi 5"}


@pytest.mark.parametrize("name", NOW)
def test_a_profile_is_stale_for_the_same_reasons_as_in_bench(name):
    then = bench_profile.Provenance(run="r", at="now", appliance="0.1.0", **{**NOW, name: "another"})
    facts = {
        "model": {"name": NOW["model"], "digest": NOW["model_digest"]},
        "engine": {"version": NOW["ollama"]},
        "board": {"name": NOW["board"]},
    }
    profile = bench_profile.TunedProfile(env={}, measured={}, provenance=then)
    (reason,) = tuned_profile.stale_reasons(msgspec.to_builtins(then), NOW)
    assert [reason] == bench_profile.is_stale(profile, facts)
    assert f"was another when it was measured, and is {NOW[name]} now" in reason


def test_what_nobody_knows_makes_no_profile_stale():
    known = dict.fromkeys(NOW, "another")
    assert tuned_profile.stale_reasons(NOW, dict.fromkeys(NOW)) == []
    assert tuned_profile.stale_reasons(None, NOW) == tuned_profile.stale_reasons({}, NOW) == []
    assert tuned_profile.stale_reasons({**dict.fromkeys(NOW), "appliance": "0.1.0"}, known) == []
