"""What the tests of this scenario share: a fleet that changes under them, so they run in the order of their files."""

from __future__ import annotations

import pytest
import rolls


@pytest.fixture(scope="session")
def releases() -> rolls.Releases:
    return rolls.Releases.made()
