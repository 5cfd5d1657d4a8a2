"""A pull: one model's blobs and then its manifest from one store into another, told as Ollama tells it.

The other store plays the registry: it lies on this machine and is only read. What Ollama does is done here too: a
blob grows in `…-partial` and gets its name when it is whole; how far it came is noted in `…-partial-0` when the
client leaves, not while it grows, so a power cut costs what this attempt had; a blob that is here is not checked;
the manifest comes last. Otherwise than Ollama, which cuts blobs of more than 100 MB, a blob has one part.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.embedded.errors import ClientGone, EngineError
from appliance.embedded.manifests import Manifest, ModelName
from appliance.embedded.store import Store, go_error

Record = dict[str, Any]
Records = Generator[Record, None, None]

TICK_S = 0.06  # between two records about one blob
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Registry:
    """Where models are pulled from. bytes_per_s: of its line; None is as fast as the disk."""

    store: Store
    bytes_per_s: float | None = None
    _one_pull: threading.Lock = field(default_factory=threading.Lock)

    def pull(self, name: ModelName, into: Store, is_gone: Callable[[], bool], removes_unused: bool) -> Records:
        """The records of a pull, which goes on as they are taken; closing the iterator stops it, to be resumed.

        is_gone: whether the client left. removes_unused: what an older version of the model leaves unused.
        Raises: EngineError 500 with Ollama's text, ClientGone.
        """
        old = _readable(into, name)
        yield {"status": "pulling manifest"}
        source = self.store.manifest_path(name)
        if not source.is_file():
            raise EngineError(500, "pull model manifest: file does not exist")
        data = source.read_bytes()
        manifest = _parsed(data)
        with self._alone(is_gone):
            fresh = []
            for layer in manifest:
                if not into.blob(layer.digest).exists():
                    fresh.append(layer.digest)
                yield from self._fetch(layer.digest, into, is_gone)
            yield {"status": "verifying sha256 digest"}
            for digest in fresh:
                _verify(into.blob(digest), digest)
            yield {"status": "writing manifest"}
            _write_manifest(into.manifest_path(name), data)
        unused = {layer.digest for layer in old or ()} - {layer.digest for layer in manifest}
        if removes_unused and unused:
            yield {"status": "removing unused layers"}
            into.remove_unused(unused)
        yield {"status": "success"}

    @contextmanager
    def _alone(self, is_gone: Callable[[], bool]) -> Iterator[None]:
        """Wait until nobody else pulls. Raises: ClientGone."""
        while not self._one_pull.acquire(timeout=TICK_S):
            if is_gone():
                raise ClientGone
        try:
            yield
        finally:
            self._one_pull.release()

    def _fetch(self, digest: str, into: Store, is_gone: Callable[[], bool]) -> Records:
        target, source = into.blob(digest), self.store.blob(digest)
        status = {"status": f"pulling {digest.removeprefix('sha256:')[:12]}", "digest": digest}
        if target.exists():
            size = target.stat().st_size
            yield {**status, "total": size, "completed": size}
            return
        if not source.is_file():
            raise EngineError(500, "file does not exist")
        part = _Part(target, source.stat().st_size)
        told_s = time.monotonic()
        for completed in part.grow(source, self.bytes_per_s, is_gone):
            if time.monotonic() - told_s >= TICK_S:
                told_s = time.monotonic()
                yield {**status, "total": part.total, "completed": completed}
        part.finish()


class _Part:
    """A blob on its way. total: its bytes."""

    def __init__(self, target: Path, total: int) -> None:
        """Raises: EngineError when an earlier attempt's note cannot be read; Ollama then wants it removed by hand."""
        self.total = total
        self._target = target
        self._file = target.with_name(f"{target.name}-partial")
        self._note = target.with_name(f"{target.name}-partial-0")
        try:
            self._completed = int(json.loads(self._note.read_bytes())["Completed"])
        except FileNotFoundError:
            self._completed = 0
            self._write_note()
        except OSError as error:
            raise EngineError(500, go_error("open", self._note, error)) from None
        except (ValueError, KeyError, TypeError):
            raise EngineError(500, "EOF" if not self._note.stat().st_size else "unexpected EOF") from None

    def grow(self, source: Path, bytes_per_s: float | None, is_gone: Callable[[], bool]) -> Iterator[int]:
        """Copy what is missing. Yields: how many bytes are here. Raises: ClientGone, EngineError."""
        block = _BLOCK_BYTES if bytes_per_s is None else max(1, min(_BLOCK_BYTES, int(bytes_per_s * TICK_S)))
        begun_s, missing, completed = time.monotonic(), self.total - self._completed, self._completed
        try:
            with source.open("rb") as original, _opened(self._file) as copy:
                copy.truncate(self.total)
                copy.seek(completed)
                while completed < self.total:
                    if is_gone():
                        raise ClientGone
                    original.seek(completed)  # a full disk takes a part of a block before it refuses
                    completed += copy.write(original.read(block))
                    if bytes_per_s is not None:
                        due_s = begun_s + (missing - (self.total - completed)) / bytes_per_s
                        time.sleep(max(0.0, due_s - time.monotonic()))
                    yield completed
        except (ClientGone, GeneratorExit):
            self._completed = completed
            self._write_note()
            raise
        except OSError as error:
            raise EngineError(500, go_error("write" if error.filename is None else "open", self._file, error)) from None

    def finish(self) -> None:
        """Give it its name."""
        self._note.unlink(missing_ok=True)
        self._file.rename(self._target)

    def _write_note(self) -> None:
        note = {"N": 0, "Offset": 0, "Size": self.total, "Completed": self._completed}
        try:
            self._note.write_text(json.dumps(note, separators=(",", ":")) + "\n")
        except OSError as error:
            raise EngineError(500, go_error("open", self._note, error)) from None


def _opened(path: Path) -> Any:
    """The file to read and write, made if it is not there; unbuffered, so that no write fails late."""
    try:
        return path.open("r+b", buffering=0)
    except FileNotFoundError:
        return path.open("x+b", buffering=0)


def _readable(store: Store, name: ModelName) -> Manifest | None:
    try:
        return store.manifest(name)
    except EngineError:
        return None


def _parsed(data: bytes) -> Manifest:
    try:
        return Manifest.parse(data)
    except ValueError as error:
        raise EngineError(500, f"pull model manifest: {error}") from None


def _verify(blob: Path, digest: str) -> None:
    """Raises: EngineError 500 when the bytes are others than the name says; the blob is then gone."""
    with blob.open("rb") as file:
        found = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    if found != digest:
        blob.unlink()
        raise EngineError(500, f"digest mismatch, file must be downloaded again: want {digest}, got {found}")


def _write_manifest(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise EngineError(500, go_error("open", path, error)) from None
