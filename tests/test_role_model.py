"""Which models role model takes, whom it lets pull, and how a copied model gets into a store: whole or not at all."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import roles

sys.path.insert(0, str(roles.ROOT / "ansible" / "library"))
import ollama_store
from ollama_store import StoreRefused

NAME = "qwen2.5:3b"
CONFIG, WEIGHTS = b'{"model_family":"qwen2"}', b"GGUF and so on"


def file_of(content: bytes) -> str:
    return f"sha256-{hashlib.sha256(content).hexdigest()}"


def layer(content: bytes) -> dict[str, Any]:
    return {"digest": file_of(content).replace("-", ":"), "size": len(content)}


MANIFEST = json.dumps({"schemaVersion": 2, "config": layer(CONFIG), "layers": [layer(WEIGHTS), layer(CONFIG)]}).encode()
DIGEST = hashlib.sha256(MANIFEST).hexdigest()


def arrive(store: Path, *contents: bytes) -> None:
    (store / "incoming").mkdir(parents=True, exist_ok=True)
    for content in contents:
        (store / "incoming" / file_of(content)).write_bytes(content)


def apply(store: Path, state: str, check_mode: bool = False, **wanted: Any) -> dict[str, Any]:
    given = {"path": str(store), "name": NAME, "state": state, "digest": "", "owner": ""}
    manifest = base64.b64encode(wanted.pop("manifest", MANIFEST)).decode()
    return ollama_store.apply({**given, "manifest": manifest, **wanted}, check_mode)


def filled(store: Path) -> Path:
    arrive(store, CONFIG, WEIGHTS)
    apply(store, "present")
    return store


def names(store: Path) -> list[str]:
    return sorted(str(path.relative_to(store)) for path in store.rglob("*") if path.is_file())


def test_a_copied_model_has_the_layout_of_ollama(tmp_path: Path) -> None:
    assert names(filled(tmp_path)) == sorted(
        [f"blobs/{file_of(CONFIG)}", f"blobs/{file_of(WEIGHTS)}", "manifests/registry.ollama.ai/library/qwen2.5/3b"]
    )
    reading = apply(tmp_path, "read", digest=DIGEST)
    assert (reading["is_whole"], reading["digest"], reading["problem"]) == (True, DIGEST, "")


def test_a_second_copy_changes_nothing(tmp_path: Path) -> None:
    assert apply(filled(tmp_path), "present")["changed"] is False


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("qwen2.5", "registry.ollama.ai/library/qwen2.5/latest"),
        ("me/mine:q4", "registry.ollama.ai/me/mine/q4"),
        ("host:5000/library/qwen2.5:3b", "host:5000/library/qwen2.5/3b"),
    ],
)
def test_a_manifest_lies_where_ollama_looks_for_it(name: str, path: str) -> None:
    assert ollama_store.manifest_path(Path("/store"), name) == Path("/store/manifests") / path


@pytest.mark.parametrize("name", ["", "../../etc/passwd:x", "a/b/c/d:1", "qwen:"])
def test_a_name_cannot_leave_the_store(name: str) -> None:
    with pytest.raises(StoreRefused, match="is no name of a model"):
        ollama_store.manifest_path(Path("/store"), name)


def test_a_blob_that_is_not_what_its_name_says_is_refused_before_the_manifest(tmp_path: Path) -> None:
    arrive(tmp_path, CONFIG)
    (tmp_path / "incoming" / file_of(WEIGHTS)).write_bytes(b"GGUF and so xx")
    with pytest.raises(StoreRefused, match=f"should be {file_of(WEIGHTS)} arrived as {file_of(b'GGUF and so xx')}"):
        apply(tmp_path, "present")
    ollama_store.clean(tmp_path / "incoming", "")
    assert names(tmp_path) == [f"blobs/{file_of(CONFIG)}"]
    assert apply(tmp_path, "read")["is_whole"] is False


def test_only_what_is_missing_travels(tmp_path: Path) -> None:
    weights = filled(tmp_path) / "blobs" / file_of(WEIGHTS)
    weights.write_bytes(b"half")
    assert apply(tmp_path, "missing")["missing"] == [{"file": file_of(WEIGHTS), "size_bytes": len(WEIGHTS)}]
    assert apply(tmp_path, "read")["problem"] == "qwen2.5:3b lacks 1 of its 2 blobs"
    arrive(tmp_path, WEIGHTS)
    assert apply(tmp_path, "present")["is_whole"] is True


def test_a_blob_that_did_not_arrive_is_named(tmp_path: Path) -> None:
    arrive(tmp_path, CONFIG)
    with pytest.raises(StoreRefused, match=f"{file_of(WEIGHTS)} did not arrive"):
        apply(tmp_path, "present")


def test_a_model_with_another_digest_is_not_put_in(tmp_path: Path) -> None:
    arrive(tmp_path, CONFIG, WEIGHTS)
    with pytest.raises(StoreRefused, match=f"has the digest {DIGEST} where it comes from"):
        apply(tmp_path, "present", digest="ab" * 32)
    assert not (tmp_path / "blobs").exists()
    reading = apply(filled(tmp_path), "read", digest="ab" * 32)
    assert (reading["is_whole"], reading["problem"].startswith(f"{NAME} has the digest {DIGEST}")) == (False, True)


@pytest.mark.parametrize("manifest", [b"", b"[]", b'{"config": {}, "layers": []}'])
def test_a_damaged_manifest_counts_as_no_model(tmp_path: Path, manifest: bytes) -> None:
    ollama_store.manifest_path(filled(tmp_path), NAME).write_bytes(manifest)
    assert apply(tmp_path, "read")["is_whole"] is False
    with pytest.raises(StoreRefused, match="not one of Ollama's"):
        ollama_store.blobs_of(manifest)


def test_a_manifest_cannot_name_files_elsewhere() -> None:
    evil = {"config": {"digest": "sha256:../../x", "size": 1}, "layers": []}
    with pytest.raises(StoreRefused, match="which is no sha256"):
        ollama_store.blobs_of(json.dumps(evil).encode())


def test_what_another_playbook_brings_meanwhile_is_left_alone(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "incoming" / "1", tmp_path / "incoming" / "2"
    for folder in (ours, theirs):
        arrive(tmp_path, CONFIG, WEIGHTS)
        folder.mkdir()
        for path in [path for path in (tmp_path / "incoming").iterdir() if path.is_file()]:
            path.rename(folder / path.name)
    assert apply(tmp_path, "present", incoming=str(ours))["is_whole"] is True
    ollama_store.clean(ours, "")
    assert sorted(path.name for path in theirs.iterdir()) == sorted([file_of(CONFIG), file_of(WEIGHTS)])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may ask as another user")
def test_a_store_that_the_ssh_user_cannot_read_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        store = filled(Path(folder) / "adopted" / "models")
        monkeypatch.setenv("SUDO_USER", "nobody")
        assert apply(store, "read")["is_fetchable"] is True
        store.parent.chmod(0o700)
        assert apply(store, "read")["is_fetchable"] is False
        monkeypatch.delenv("SUDO_USER")
        assert apply(store, "read")["is_fetchable"] is True


def test_check_mode_says_what_would_be_copied(tmp_path: Path) -> None:
    assert apply(tmp_path, "present", check_mode=True)["msg"] == "would copy 2 blobs of qwen2.5:3b, 0 MiB"
    assert list(tmp_path.iterdir()) == []


def lacks(**given: Any) -> bool:
    return roles.evaluate("model", "model__lacks", None, **given)


def test_a_node_lacks_the_model_until_it_was_pulled_or_copied() -> None:
    missing, done, failed = {"is_whole": False}, {"changed": True, "failed": False}, {"failed": True}
    assert lacks(model__store=missing) is True
    assert lacks(model__store=missing, model__pulled=failed) is True
    assert lacks(model__store=missing, model__copied=done) is False
    assert lacks(model__store=missing, model__pulled=done) is False
    assert lacks(model__store={"is_whole": True}) is False


@pytest.mark.parametrize("name", ["qwen2.5:3b", "qwen2.5", "me/mine:q4_K_M", "host:5000/library/qwen2.5:3b"])
def test_names_of_models_are_taken(name: str) -> None:
    assert roles.evaluate("model", "model_name is match(model__is_name)", None, model_name=name) is True


@pytest.mark.parametrize("name", ["", "qwen 2.5", "qwen2.5:", "-x:", "a/b/c/d"])
def test_what_is_no_name_is_not_taken(name: str) -> None:
    assert roles.evaluate("model", "model_name is match(model__is_name)", None, model_name=name) is False
