import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = ["requirements.lock", "requirements-dev.lock", "tests/e2e/node/package-lock.json"]


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_names_no_registry_and_no_machine(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not re.findall(r"\w+://\S+|file:\S+|^--\S+", text, re.MULTILINE)


@pytest.mark.parametrize("name", LOCKS[:2])
def test_a_lock_has_a_hash_for_each_package_and_leaves_torch_to_pip(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    # Some are for some platforms only: `uvloop==1.2 ; platform_system != "Windows" \`
    pattern = r"^([a-z0-9._-]+)==\S+(?: ; [^\n\\]*[^\n\\ ])?( \\\n    --hash=sha256:[0-9a-f]{64})?"
    packages = re.findall(pattern, text, re.MULTILINE)
    assert packages
    assert [package for package, digest in packages if not digest] == []
    assert [p for p, _ in packages if p in ("torch", "triton") or p.startswith(("cuda-", "nvidia-c"))] == []


def test_the_two_python_locks_agree() -> None:
    def pins(name: str) -> set[str]:
        text = (ROOT / name).read_text(encoding="utf-8")
        return set(re.findall(r"^[a-z0-9._-]+==[^ \n]+", text, re.MULTILINE))

    assert pins("requirements.lock") <= pins("requirements-dev.lock")
