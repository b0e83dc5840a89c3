"""What the tests of a whole robot share: a twin that was calibrated once a module."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from agent_site import Person, Robot, Site, calibrated_site, ready_robot


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Person]]:
    """A twin whose two arms were calibrated through the agent's API."""
    site, person = calibrated_site(tmp_path_factory.mktemp("robot"))
    yield site, person
    person.close()
    site.close()


@pytest.fixture
def robot(calibrated: tuple[Site, Person]) -> Iterator[Robot]:
    """The calibrated robot, at rest, idle and ready."""
    site, person = calibrated
    with ready_robot(site, person) as client:
        yield site, person, client
