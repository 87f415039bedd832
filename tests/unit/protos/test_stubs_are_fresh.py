import subprocess
import sys
from pathlib import Path

GENERATE = Path(__file__).parents[3] / "protos" / "generate.py"


def test_stubs_are_what_the_proto_files_say() -> None:
    check = subprocess.run([sys.executable, str(GENERATE), "--check"], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout + check.stderr
