"""The download server serves whole files, and is bad in the ways it is asked to be."""

from __future__ import annotations

import contextlib
import http.client
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.server import Faults, serving

CONTENT = bytes(range(256)) * 1024


@contextlib.contextmanager
def downloads(folder: Path, faults: Faults) -> Iterator[http.client.HTTPConnection]:
    (folder / "file").write_bytes(CONTENT)
    with serving(folder, faults, "127.0.0.1") as server:
        host, port = server.url.removeprefix("http://").split(":")
        with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=20)) as connection:
            yield connection


def test_a_file_arrives_whole(tmp_path: Path) -> None:
    with downloads(tmp_path, Faults()) as connection:
        connection.request("GET", "/file?x=1")
        assert connection.getresponse().read() == CONTENT


def test_a_download_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with downloads(tmp_path, Faults()) as connection:
        connection.request("GET", "/file", headers={"Range": "bytes=262000-"})
        answer = connection.getresponse()
        assert (answer.status, answer.headers["Content-Range"]) == (206, "bytes 262000-262143/262144")
        assert answer.read() == CONTENT[262000:]


def test_bytes_that_the_file_does_not_have_are_refused(tmp_path: Path) -> None:
    with downloads(tmp_path, Faults()) as connection:
        connection.request("GET", "/file", headers={"Range": "bytes=262144-"})
        assert connection.getresponse().status == 416


@pytest.mark.parametrize("path", ["/missing", "/../file", "/%2e%2e/%2e%2e/etc/hostname", "/"])
def test_nothing_else_is_served(path: str, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "file").write_bytes(b"outside")
    with serving(inner, Faults(), "127.0.0.1") as server:
        host, port = server.url.removeprefix("http://").split(":")
        with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=20)) as connection:
            connection.request("GET", path)
            assert connection.getresponse().status == 404


def test_a_corrupted_file_differs_in_one_bit(tmp_path: Path) -> None:
    with downloads(tmp_path, Faults(corrupt=True)) as connection:
        connection.request("GET", "/file")
        body = connection.getresponse().read()
        assert len(body) == len(CONTENT)
        assert sum((a ^ b).bit_count() for a, b in zip(body, CONTENT, strict=True)) == 1


def test_a_broken_off_download_ends_early(tmp_path: Path) -> None:
    with downloads(tmp_path, Faults(stop_after=70_000)) as connection:
        connection.request("GET", "/file")
        with pytest.raises(http.client.IncompleteRead) as broken:
            connection.getresponse().read()
        assert broken.value.partial == CONTENT[:70_000]
