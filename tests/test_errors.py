"""The tree of errors as its docstring draws it, and its one rendering."""

from __future__ import annotations

import re

import falcon
import pytest
from falcon import testing

from appliance import errors
from appliance.errors import ApplianceError, QueueFull, Unauthenticated

DRAWN = re.compile(r"^ {4}([│ ]*)[├└]── (\w+) (\d{3})\b")


def drawn() -> dict[str, tuple[str, int]]:
    """Of each class in the docstring's picture: its parent's name and its status."""
    tree: dict[str, tuple[str, int]] = {}
    parents = ["ApplianceError"]
    for line in (errors.__doc__ or "").splitlines():
        if match := DRAWN.match(line):
            depth = len(match[1]) // 4 + 1
            tree[match[2]] = (parents[depth - 1], int(match[3]))
            parents[depth:] = [match[2]]
    return tree


def all_of(kind: type[ApplianceError]) -> list[type[ApplianceError]]:
    return [error for child in kind.__subclasses__() for error in (child, *all_of(child))]


ALL = [error for error in all_of(ApplianceError) if error.__module__ == errors.__name__]


def test_the_picture_is_the_tree() -> None:
    assert drawn() == {error.__name__: (error.__bases__[0].__name__, error.status) for error in ALL}


def test_every_error_has_a_code_of_its_own() -> None:
    codes = [error.code for error in [ApplianceError, *ALL]]
    assert sorted(codes) == sorted(set(codes))
    assert all(re.fullmatch("[a-z]+(_[a-z]+)*", code) for code in codes)


class Raises:
    def __init__(self, error: ApplianceError) -> None:
        self.error = error

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.stream = [b"half an answer"]
        raise self.error


def answer_to(error: ApplianceError) -> testing.Result:
    app = falcon.App()
    app.add_error_handler(ApplianceError, errors.render)
    app.add_route("/", Raises(error))
    return testing.TestClient(app).simulate_get("/")


@pytest.mark.parametrize("kind", [ApplianceError, *ALL])
def test_it_is_rendered_with_its_status_and_code(kind: type[ApplianceError]) -> None:
    answer = answer_to(kind("What is wrong, and what to do."))
    assert answer.status_code == kind.status
    assert answer.json == {"error": kind.code, "detail": "What is wrong, and what to do."}
    assert "Retry-After" not in answer.headers


@pytest.mark.parametrize(("given", "told"), [(0, 1), (0.2, 1), (2.0, 2), (2.1, 3), (61, 61)])
def test_seconds_to_wait_are_whole_and_never_none(given: float, told: int) -> None:
    answer = answer_to(QueueFull("Full.", retry_after_s=given))
    assert answer.headers["Retry-After"] == str(told)
    assert answer.json["retry_after_s"] == told


def test_a_missing_key_is_told_how_to_be_sent() -> None:
    assert answer_to(Unauthenticated("No key.")).headers["WWW-Authenticate"].startswith("Bearer")
    assert "WWW-Authenticate" not in answer_to(QueueFull("Full.")).headers


def test_further_fields_are_in_the_body() -> None:
    answer = answer_to(errors.InvalidValue("No.", field="top_k", allowed="1"))
    assert (answer.json["field"], answer.json["allowed"]) == ("top_k", "1")
