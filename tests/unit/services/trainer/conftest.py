"""What the Trainer's tests share."""

from pathlib import Path

import pytest

from tests.unit.services.trainer.tiny_model import save_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a two-layer Llama. Needs torch."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    save_model(folder)
    return folder
