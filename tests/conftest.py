"""What every test shares."""

from pathlib import Path

import pytest

E2E = Path(__file__).parent / "e2e"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies in tests/e2e, so that `-m "not e2e"` leaves the quick tests."""
    for item in items:
        if item.path.is_relative_to(E2E):
            item.add_marker("e2e")
