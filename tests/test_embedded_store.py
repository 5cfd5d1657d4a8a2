"""The embedded engine keeps models as Ollama does: a store that others may write to, and pulls that can be resumed.

Texts of errors and what is listed are captures of Ollama 0.33 with a store damaged in the same way.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from test_embedded_gguf import SMALL

from appliance.embedded import pull
from appliance.embedded.errors import ClientGone, EngineError, SetupProblem
from appliance.embedded.manifests import ModelName
from appliance.embedded.models import StoredModels
from appliance.embedded.pull import Registry
from appliance.embedded.store import Store
from tests.hosts import registry
from tests.hosts.registry import FIRST, SECOND

MANIFEST = registry.manifest_path(FIRST)


def here() -> bool:
    return False


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    """A registry with two small models, which share their file."""
    (tmp_path / "small.gguf").write_bytes(SMALL)
    registry.write(registry.members(tmp_path / "small.gguf"), tmp_path / "remote")
    return tmp_path / "remote"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "models")
    store.prepare()
    return store


@pytest.fixture
def models(remote: Path, store: Store) -> StoredModels:
    return StoredModels(store, Registry(Store(remote)))


@pytest.fixture
def full(models: StoredModels) -> StoredModels:
    """The store with both models in it."""
    for name in (FIRST, SECOND):
        list(models.pull(name, here))
    return models


@pytest.fixture
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record for every 100 bytes."""
    monkeypatch.setattr(pull, "TICK_S", 0)
    monkeypatch.setattr(pull, "_BLOCK_BYTES", 100)


def model_blob(folder: Path) -> Path:
    return folder / "blobs" / f"sha256-{hashlib.sha256(SMALL).hexdigest()}"


def leaving_after(asked: int) -> Callable[[], bool]:
    """A client that is gone when it is asked for the nth time."""
    times = iter(range(asked))
    return lambda: next(times, None) is None


def names(models: StoredModels) -> set[str]:
    return {model.name for model in models.all()}


def damage(store: Store, media_type: str) -> None:
    """Remove the blob of this kind of the first model."""
    manifest = store.manifest(ModelName.parse(FIRST))
    assert manifest
    (layer,) = (layer for layer in manifest if layer.media_type.endswith(media_type))
    store.blob(layer.digest).unlink()


class TestNames:
    @pytest.mark.parametrize(
        ("given", "shortest", "path"),
        [
            ("x", "x:latest", "registry.ollama.ai/library/x/latest"),
            ("qwen2.5:3b", "qwen2.5:3b", "registry.ollama.ai/library/qwen2.5/3b"),
            ("registry.ollama.ai/library/x:1", "x:1", "registry.ollama.ai/library/x/1"),
            ("me/x:1", "me/x:1", "registry.ollama.ai/me/x/1"),
            ("host:5000/me/x:1", "host:5000/me/x:1", "host:5000/me/x/1"),
        ],
    )
    def test_what_is_not_said_is_filled_in(self, given: str, shortest: str, path: str) -> None:
        name = ModelName.parse(given)
        assert (str(name), str(name.path)) == (shortest, path)

    @pytest.mark.parametrize("given", ["", "a b", "../x:1", "x:..", "x:a/b", "/x", ":1", "a/b/c/d", "x" * 81])
    def test_what_could_leave_the_folder_is_no_name(self, given: str) -> None:
        with pytest.raises(ValueError, match="is no name of a model"):
            ModelName.parse(given)


class TestPull:
    @pytest.mark.usefixtures("_small_steps")
    def test_its_records_are_ollamas(self, models: StoredModels) -> None:
        records = list(models.pull(FIRST, here))
        digest = f"sha256:{hashlib.sha256(SMALL).hexdigest()}"
        status = {"status": f"pulling {digest[7:19]}", "digest": digest, "total": len(SMALL)}
        assert records[0] == {"status": "pulling manifest"}
        assert records[1] == {**status, "completed": 100}
        assert {**status, "completed": len(SMALL)} in records
        assert [record["status"] for record in records[-3:]] == [
            "verifying sha256 digest",
            "writing manifest",
            "success",
        ]

    def test_the_store_is_then_as_the_registry(self, models: StoredModels, store: Store, remote: Path) -> None:
        list(models.pull(FIRST, here))
        assert model_blob(store.directory).read_bytes() == SMALL
        assert (store.directory / MANIFEST).read_bytes() == (remote / MANIFEST).read_bytes()
        assert not list(store.directory.glob("blobs/*partial*"))

    def test_what_is_here_is_told_as_complete_at_once(self, full: StoredModels) -> None:
        records = list(full.pull(FIRST, here))
        assert (records[1]["total"], records[1]["completed"]) == (len(SMALL), len(SMALL))
        assert len(records) == 8  # four blobs, and four steps

    def test_a_name_that_the_registry_does_not_know_fails_after_the_first_record(self, models: StoredModels) -> None:
        records = models.pull("smollm2:136m", here)
        assert next(records) == {"status": "pulling manifest"}
        with pytest.raises(EngineError, match=r"^pull model manifest: file does not exist$"):
            next(records)

    @pytest.mark.usefixtures("_small_steps")
    def test_the_model_is_not_listed_before_it_is_whole(self, models: StoredModels) -> None:
        for record in models.pull(FIRST, here):
            assert names(models) == ({FIRST} if record["status"] == "success" else set())

    @pytest.mark.usefixtures("_small_steps")
    def test_one_that_was_left_goes_on_where_it_was(self, models: StoredModels, store: Store) -> None:
        with pytest.raises(ClientGone):
            list(models.pull(FIRST, leaving_after(3)))
        note = json.loads(next(store.directory.glob("blobs/*-partial-0")).read_text())
        assert note == {"N": 0, "Offset": 0, "Size": len(SMALL), "Completed": 200 + 100}
        assert list(models.pull(FIRST, here))[1]["completed"] == min(400, len(SMALL))
        assert model_blob(store.directory).read_bytes() == SMALL

    @pytest.mark.usefixtures("_small_steps")
    def test_closing_its_records_is_leaving_too(self, models: StoredModels, store: Store) -> None:
        records = models.pull(FIRST, here)
        assert [next(records).get("completed") for _ in range(2)] == [None, 100]
        records.close()
        assert json.loads(next(store.directory.glob("blobs/*-partial-0")).read_text())["Completed"] == 100

    def test_after_a_power_cut_it_begins_again(self, models: StoredModels, store: Store) -> None:
        blob = model_blob(store.directory)
        blob.with_name(f"{blob.name}-partial").write_bytes(b"\xff" * len(SMALL))
        note = {"N": 0, "Offset": 0, "Size": len(SMALL), "Completed": 0}
        blob.with_name(f"{blob.name}-partial-0").write_text(json.dumps(note))
        list(models.pull(FIRST, here))
        assert blob.read_bytes() == SMALL

    def test_a_note_that_a_power_cut_emptied_stops_it_as_it_stops_ollama(
        self, models: StoredModels, store: Store
    ) -> None:
        blob = model_blob(store.directory)
        blob.with_name(f"{blob.name}-partial-0").touch()
        with pytest.raises(EngineError, match=r"^EOF$"):
            list(models.pull(FIRST, here))

    def test_bytes_that_are_not_what_their_name_says_are_not_kept(
        self, models: StoredModels, store: Store, remote: Path
    ) -> None:
        model_blob(remote).write_bytes(SMALL[:-1] + b"!")
        with pytest.raises(EngineError, match=r"^digest mismatch, file must be downloaded again: want sha256:"):
            list(models.pull(FIRST, here))
        assert not model_blob(store.directory).exists()
        assert names(models) == set()

    def test_a_blob_that_the_registry_lost_stops_it(self, models: StoredModels, remote: Path) -> None:
        model_blob(remote).unlink()
        with pytest.raises(EngineError, match=r"^file does not exist$"):
            list(models.pull(FIRST, here))

    @pytest.mark.parametrize("removes_unused", [True, False])
    def test_what_an_older_version_leaves_is_removed_unless_that_is_not_wanted(
        self, store: Store, remote: Path, removes_unused: bool
    ) -> None:
        models = StoredModels(store, Registry(Store(remote)), removes_unused)
        list(models.pull(SECOND, here))
        licence = {path.name for path in remote.glob("blobs/*")}
        (remote / registry.manifest_path(SECOND)).write_bytes((remote / MANIFEST).read_bytes())
        statuses = [record["status"] for record in models.pull(SECOND, here)]
        assert ("removing unused layers" in statuses) is removes_unused
        assert (len(licence) - len(list(store.directory.glob("blobs/*")))) == int(removes_unused)

    def test_a_store_that_cannot_be_written_is_told_as_go_does(self, models: StoredModels, store: Store) -> None:
        (store.directory / "blobs").rmdir()
        (store.directory / "blobs").touch()
        with pytest.raises(EngineError, match=r"^open /.*-partial-0: not a directory$"):
            list(models.pull(FIRST, here))


class TestListing:
    def test_the_digest_is_the_manifests_and_the_size_that_of_all_blobs(
        self, models: StoredModels, store: Store
    ) -> None:
        list(models.pull(FIRST, here))
        (model,) = models.all()
        assert model.digest == hashlib.sha256((store.directory / MANIFEST).read_bytes()).hexdigest()
        assert model.size == sum(path.stat().st_size for path in store.directory.glob("blobs/*"))

    def test_what_somebody_copies_in_is_there_without_a_restart(
        self, models: StoredModels, store: Store, remote: Path
    ) -> None:
        assert names(models) == set()
        registry.write({path: remote / path for path in files(remote)}, store.directory)
        assert names(models) == {FIRST, SECOND}
        assert models.find("SmolLM2:135M", "generate")

    def test_a_model_is_one_object_until_its_manifest_changes(self, full: StoredModels, store: Store) -> None:
        before = full.find(FIRST, "generate")
        assert full.find(FIRST, "generate") is before
        (store.directory / MANIFEST).write_bytes((store.directory / registry.manifest_path(SECOND)).read_bytes())
        after = full.find(FIRST, "generate")
        assert after is not None
        assert after is not before

    @pytest.mark.parametrize(
        ("content", "problem"), [("", "^EOF$"), ('{"config', "^unexpected EOF$"), ("x", "^invalid")]
    )
    def test_a_manifest_that_is_none_is_not_listed_and_an_error_when_asked_for(
        self, full: StoredModels, store: Store, content: str, problem: str
    ) -> None:
        (store.directory / MANIFEST).write_text(content)
        assert names(full) == {SECOND}
        for ask in (lambda: full.find(FIRST, "generate"), lambda: full.delete(FIRST)):
            with pytest.raises(EngineError, match=problem) as raised:
                ask()
            assert raised.value.status == 500

    @pytest.mark.parametrize("kind", ["container.image.v1+json", "image.template"])
    def test_without_one_of_its_small_blobs_a_model_is_unknown(
        self, models: StoredModels, store: Store, kind: str
    ) -> None:
        list(models.pull(FIRST, here))
        damage(store, kind)
        assert names(StoredModels(store)) == set()
        assert StoredModels(store).find(FIRST, "generate") is None

    def test_without_its_file_it_is_listed_and_of_no_use(self, models: StoredModels, store: Store) -> None:
        list(models.pull(FIRST, here))
        damage(store, "image.model")
        assert names(models) == {FIRST}
        assert models.find(FIRST, "show") is None
        with pytest.raises(EngineError, match=r'^"smollm2:135m" does not support generate$'):
            models.find(FIRST, "generate")

    def test_a_file_that_is_no_model_is_told(self, models: StoredModels, store: Store) -> None:
        list(models.pull(FIRST, here))
        model_blob(store.directory).write_bytes(bytes(1000))
        fresh = StoredModels(store)
        with pytest.raises(EngineError, match=r"^invalid file magic$"):
            fresh.find(FIRST, "show")
        with pytest.raises(EngineError, match="does not support chat"):
            fresh.find(FIRST, "chat")


class TestDeletion:
    def test_blobs_that_another_model_needs_stay(self, full: StoredModels, store: Store) -> None:
        assert full.delete(SECOND)
        assert names(full) == {FIRST}
        assert model_blob(store.directory).exists()
        assert len(list(store.directory.glob("blobs/*"))) == 4

    def test_of_the_last_model_nothing_stays(self, full: StoredModels, store: Store) -> None:
        assert full.delete(FIRST)
        assert full.delete(SECOND)
        assert files(store.directory) == []
        assert not (store.directory / "manifests").exists()

    def test_what_is_not_here_cannot_be_deleted(self, models: StoredModels) -> None:
        assert not models.delete(FIRST)


def test_a_store_that_cannot_be_made_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        SetupProblem, match=r"^mkdir /.*/file/models/blobs: not a directory: ensure path elements are traversable$"
    ):
        Store(tmp_path / "file/models").prepare()


def files(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
