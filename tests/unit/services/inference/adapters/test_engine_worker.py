"""What a worker of a language model does beside its loop."""

import os
import subprocess
import sys

from services.inference.adapters.workers import WORKER_ENVIRONMENT

FREED_MIB = 100


def run(code: str) -> str:
    """What it prints in a process of its own, in a worker's environment."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | WORKER_ENVIRONMENT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_freed_memory_goes_back_to_the_system() -> None:
    kept, given_back = map(
        int,
        run(f"""
import psutil
from services.inference.adapters.engine_worker import give_back_memory
blocks = [b"x" * 100_000 for _ in range({FREED_MIB * 2**20 // 100_000})]
last = b"y" * 100_000
del blocks
kept = psutil.Process().memory_info().rss
give_back_memory()
print(kept, kept - psutil.Process().memory_info().rss)
""").split(),
    )
    assert kept > FREED_MIB * 2**20, "the allocator keeps it, for the next step"
    assert given_back > 0.9 * FREED_MIB * 2**20


def test_torchs_compiler_is_not_imported_on_a_cpu() -> None:
    found = run("""
import sys
import services.inference.adapters.runner.load
from services.inference.core import loop
print(sorted({"sympy", "torch._dynamo", "torch._inductor", "transformers"} & sys.modules.keys()))
""")
    assert found.strip() == "[]"
