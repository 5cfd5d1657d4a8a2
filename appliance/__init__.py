"""The appliance: an HTTP service that puts keys, a fair bounded queue and SSE in front of a local model."""

import sys
from importlib.metadata import version
from pathlib import Path


def release_of(prefix: Path) -> str | None:
    """The release that a deploy laid around this virtualenv: the name of the folder with a RELEASE.json, or None."""
    folder = prefix.resolve().parent
    return folder.name if (folder / "RELEASE.json").is_file() else None


__version__ = version("pi-llm-fleet")
# Asked at start: afterwards the link on the way may lead to another release, and what runs is still this one.
__release__ = release_of(Path(sys.prefix))
