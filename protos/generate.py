"""Write the Python stubs of every .proto file beside it: messages, services, and the types of both.

`make proto` runs it after a change of the contract; `--check` writes nothing and exits 1 where the stubs
in the tree differ from what the .proto files say (`make lint` and a test run that).
"""

import argparse
import os
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

PROTOS = Path(__file__).resolve().parent
GENERATED = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi", "__init__.py")
INIT = '"""Generated from the .proto files by protos/generate.py: do not edit."""\n'


def generate(protos: Path, out: Path) -> None:
    """Write the stubs of `protos` under `out`. Raises CalledProcessError where a .proto file is wrong."""
    sources = sorted(path.relative_to(protos).as_posix() for path in protos.rglob("*.proto"))
    command = [
        sys.executable, "-m", "grpc_tools.protoc",
        f"--proto_path={protos}",
        # The well-known types (google/protobuf/*.proto) ride inside grpc_tools.
        f"--proto_path={files('grpc_tools') / '_proto'}",
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_out=quiet:{out}",
        f"--mypy_grpc_out=quiet:{out}",
        *sources,
    ]  # fmt: skip
    # The mypy plugins are found on PATH; an environment that is not activated is not on it.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    subprocess.run(command, check=True, env={**os.environ, "PATH": path})
    for folder in sorted({out / Path(source).parent for source in sources}):
        for package in (folder, *folder.parents):
            if package == out:
                break
            (package / "__init__.py").write_text(INIT, encoding="utf-8")


def generated_files(root: Path) -> dict[str, str]:
    """Path below `root` -> text, of every file that `generate` writes."""
    found = (path for pattern in GENERATED for path in root.glob(f"lares/**/{pattern}"))
    return {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in found}


def stale_stubs() -> list[str]:
    """Paths below protos/ of the stubs that are missing, out of date, or left over from a .proto file that is gone."""
    with tempfile.TemporaryDirectory() as folder:
        generate(PROTOS, Path(folder))
        wanted = generated_files(Path(folder))
    present = generated_files(PROTOS)
    return sorted(name for name in wanted.keys() | present.keys() if wanted.get(name) != present.get(name))


def main() -> int:
    """Generate, or with --check compare. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Generate the Python stubs beside their .proto files.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a stub is not fresh")
    if parser.parse_args().check:
        stale = stale_stubs()
        if stale:
            print("stubs that are not what the .proto files say; run `make proto`:", *stale, sep="\n  ")
        return 1 if stale else 0
    for name in generated_files(PROTOS):
        (PROTOS / name).unlink()
    generate(PROTOS, PROTOS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
