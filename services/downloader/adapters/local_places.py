"""Where other programs keep models on this machine. Names are read, nothing else; no link is followed."""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

from services.downloader.adapters import hf_cache, ollama_models
from services.downloader.core.local_models import Candidate, LocalPlace
from services.downloader.core.wholeness import missing_file, shards_of
from services.kit.errors import LaresError
from services.kit.unbroken import see_through

_MAX_CANDIDATES: Final = 10_000
_MAX_ENTRIES: Final = 100_000
_OLLAMA_SERVICE: Final = Path("/usr/share/ollama/.ollama/models")


def usual_folders() -> list[Path]:
    """Those of Hugging Face and of Ollama, as their own settings in the environment and their defaults have them."""
    # Imported when somebody looks: it is large.
    from huggingface_hub import constants

    ollama = os.environ.get("OLLAMA_MODELS")
    own = Path(ollama) if ollama else Path.home() / ".ollama" / "models"
    return [Path(constants.HF_HUB_CACHE), own, _OLLAMA_SERVICE]


class DiskPlaces:
    """See `LocalPlaces`. others: looked into beside the usual folders."""

    def __init__(
        self, others: Sequence[str] = (), *, usual: Callable[[], Sequence[Path]] = usual_folders
    ) -> None:
        self._others = others
        self._usual = usual

    async def candidates(self, folders: Sequence[str]) -> AsyncGenerator[Candidate, None]:
        """What looks like a model, folder by folder."""
        found = self._walk(folders)
        while (candidate := await see_through(asyncio.to_thread(next, found, None))) is not None:
            yield candidate

    def _walk(self, folders: Sequence[str]) -> Iterator[Candidate]:
        chosen = [Path(folder) for folder in folders or self._others]
        # Nobody asked for those: that one of them is not there is nothing to tell.
        usual = [folder for folder in ([] if folders else self._usual()) if os.access(folder, os.F_OK)]
        roots = dict.fromkeys(Path(os.path.realpath(folder)) for folder in [*usual, *chosen])
        for root in roots:
            try:
                yield from islice(_found_in(root), _MAX_CANDIDATES)
            except OSError as error:
                yield _unread(root, f"it cannot be looked into: {error.strerror}")


def _found_in(root: Path) -> Iterator[Candidate]:
    for folder in (root, root / "hub", root / "models"):
        if (folder / "blobs").is_dir() and any((folder / name).is_dir() for name in ollama_models.MANIFESTS):
            return _in_ollama(folder)
        if folder.is_dir() and any(folder.glob("models--*/snapshots")):
            return _in_cache(folder)
    return _in_folder(root)


def _in_cache(root: Path) -> Iterator[Candidate]:
    for name, commit in hf_cache.repositories(root):
        try:
            for ref in hf_cache.references(root, name, commit):
                yield Candidate(str(ref), LocalPlace.HUGGING_FACE, str(root))
        except LaresError as error:
            yield Candidate(f"hf:{name}@{commit}", LocalPlace.HUGGING_FACE, str(root), error.message)


def _in_ollama(root: Path) -> Iterator[Candidate]:
    for reference, problem in ollama_models.references(root):
        yield Candidate(reference, LocalPlace.OLLAMA, str(root), problem)


def _in_folder(root: Path) -> Iterator[Candidate]:
    """GGUF files, each a model or the parts of one, and folders with safetensors."""
    # Of what lies below, what may not be read is passed over. Of the folder itself it is told.
    os.scandir(root).close()
    num_entries = 0
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        num_entries += len(folders) + len(files)
        if num_entries > _MAX_ENTRIES:
            yield _unread(root, f"it holds more than {_MAX_ENTRIES} files: name a folder further down")
            return
        plain = [name for name in sorted(files) if not (Path(folder) / name).is_symlink()]
        yield from _models_of(Path(folder), plain)


def _models_of(folder: Path, names: Sequence[str]) -> Iterator[Candidate]:
    ggufs = [name for name in names if name.lower().endswith(".gguf") and "mmproj" not in name.lower()]
    if ggufs:
        firsts = dict.fromkeys(next(shards_of(name), name) for name in ggufs)
        for first in firsts:
            yield _of_ggufs(folder, first, ggufs)
    elif any(name.endswith(".safetensors") for name in names):
        missing = missing_file(names, ())
        problem = f"{missing} is not there, so it is no whole model" if missing else ""
        yield Candidate(f"file:{folder}", LocalPlace.FOLDER, str(folder), problem)


def _of_ggufs(folder: Path, first: str, ggufs: Sequence[str]) -> Candidate:
    """The model in a file, or in parts of which that is the first."""
    path = folder / first
    problem = ""
    if parts := list(shards_of(first)):
        if missing := next((part for part in parts if part not in ggufs), ""):
            problem = f"{missing} is not there, so it is no whole model"
        elif len(parts) < len(ggufs) or any(folder.glob("*/**/*.gguf")):
            problem = (
                "it is in parts, and other models lie beside or below them: move it to a folder of its own"
            )
        else:
            path = folder
    return Candidate(f"file:{path}", LocalPlace.FOLDER, str(folder), problem)


def _unread(root: Path, problem: str) -> Candidate:
    return Candidate("", LocalPlace.FOLDER, str(root), problem)
