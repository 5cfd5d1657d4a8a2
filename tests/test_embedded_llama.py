"""llama.cpp in this process: it can be stopped at every batch of a prompt and at every token."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from appliance.embedded import weights
from appliance.embedded.errors import ClientGone, EngineError
from appliance.embedded.gguf import Model
from appliance.embedded.llama import Completed, Llama
from appliance.embedded.options import LoadOptions, RunOptions

pytestmark = pytest.mark.tier2

BATCH = 32
LOAD = LoadOptions(num_ctx=1024, num_batch=BATCH, num_thread=1)


@pytest.fixture(scope="module")
def llama() -> Iterator[Llama]:
    llama = Llama(Model.open(weights.NAME, weights.ensure()), LOAD, parallel=1)
    yield llama
    llama.close()


class Leaver:
    """A client that has left when it is asked for the n-th time."""

    def __init__(self, leaves_at: int) -> None:
        self.leaves_at, self.asked = leaves_at, 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.asked >= self.leaves_at


def complete(
    llama: Llama,
    prompt: str,
    limit: int = 1,
    on_text: Callable[[str], None] = lambda text: None,
    is_gone: Callable[[], bool] = lambda: False,
) -> Completed:
    return llama.complete(prompt, RunOptions(), limit, None, on_text, is_gone)


def test_the_client_is_looked_after_at_every_batch_of_the_prompt(llama: Llama) -> None:
    client = Leaver(leaves_at=10**6)
    done = complete(llama, " every" * 320, is_gone=client)
    assert done.prompt_eval_count == 320
    assert client.asked >= 320 / BATCH


def test_a_client_that_leaves_in_the_prompt_ends_it_there(llama: Llama) -> None:
    client, pieces = Leaver(leaves_at=3), list[str]()
    with pytest.raises(ClientGone):
        complete(llama, " leave" * 900, on_text=pieces.append, is_gone=client)
    assert (client.asked, pieces) == (3, [])
    assert complete(llama, "Hi").eval_count == 1


def test_a_client_that_leaves_at_a_token_ends_it_there(llama: Llama) -> None:
    pieces: list[str] = []
    with pytest.raises(ClientGone):
        complete(llama, "One, two,", 500, pieces.append, lambda: len(pieces) >= 3)
    assert len(pieces) == 3


def test_what_the_reader_raises_comes_out_and_ends_it(llama: Llama) -> None:
    def breaks(text: str) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        complete(llama, "One, two,", 500, breaks)
    assert complete(llama, "Hi").eval_count == 1


def test_a_file_that_llama_cannot_load_is_a_500() -> None:
    broken = Model("broken", weights.REQUIREMENTS, {})
    with pytest.raises(EngineError, match="llama runner failed to load model") as refused:
        Llama(broken, LOAD, parallel=1)
    assert refused.value.status == 500
