"""Which of the files that a source has are the model's. By their names alone. Pure functions."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Final

from services.downloader.core.paths import check_paths
from services.kit.errors import UnsupportedFormat

PICKLES: Final = (
    ".bin",
    ".pt",
    ".pth",
    ".pkl",
    ".pickle",
    ".ckpt",
    ".joblib",
    ".npy",
    ".npz",
    ".h5",
    ".keras",
)
"""Names of files that run code, or may, when they are loaded."""

SIGNATURE: Final = "model.sig"
"""What https://github.com/sigstore/model-transparency writes beside a model."""

_NOT_OF_A_MODEL: Final = (
    ".py",
    ".pyc",
    ".pyi",
    ".md",
    ".gitattributes",
    ".gitignore",
    ".sh",
    ".so",
    ".dll",
    ".html",
    "readme",
    ".js",
    ".ipynb",
    ".jar",
    ".wasm",
    ".exe",
    ".dylib",
    ".bat",
    ".ps1",
)
_PART = re.compile(r"(?P<whole>.+)\.part[-_]?(?P<number>\d{1,4})")
_SHARD = re.compile(r"(?P<whole>.+)-\d{5}-of-\d{5}")
_QUANTIZATION = re.compile(
    r"(?:^|[.\-_])((?:I?Q[1-8]|TQ[12]|BF16|F16|F32|MXFP4)(?:_[A-Z0-9]+)*)(?=[.\-]|$)", re.IGNORECASE
)
_HUB_FILES: Final = (".safetensors", ".json", ".txt", ".model", ".jinja")


@dataclass(frozen=True, slots=True)
class Piece:
    """One member of an archive. path: of the file in the model that it becomes, or becomes a part of."""

    archive: int
    member: str
    path: str


def pieces_of(archives: Sequence[Sequence[str]], folder: str) -> list[Piece]:
    """The members of some archives that make up a model; those of one file in the order of its parts.

    folder: glob of the model's folder, or empty. Raises UnsupportedFormat if there is no model, or not all of it.
    """
    found = []
    for index, members in enumerate(archives):
        roots = _matching_folders(members, folder) if folder else _weight_folders(members)
        found += [Piece(index, member, path) for member, path in _below(members, roots)]
    wanted = set(model_files(_whole(piece.path)[0] for piece in found))
    if not wanted:
        raise UnsupportedFormat(_nothing_found(name for members in archives for name in members))
    return _in_order([piece for piece in found if _whole(piece.path)[0] in wanted])


def storable_files(paths: Iterable[str]) -> list[str]:
    """Of any files, those that the store takes: no code, and nothing that runs code when it is loaded."""
    kept = [path for path in paths if not path.lower().endswith(_NOT_OF_A_MODEL)]
    pickles = set(left_out(kept))
    return [path for path in kept if not _is_pickle(path) or (path == "model.bin" and path not in pickles)]


def model_files(paths: Iterable[str]) -> list[str]:
    """Of the files in a model's folder, those that are loaded, and their signature. A GGUF file needs no other."""
    kept = storable_files(paths)
    ggufs = [path for path in kept if path.lower().endswith(".gguf")]
    if ggufs:
        return [*ggufs, *(path for path in kept if path == SIGNATURE)]
    return kept if _weights(kept) else []


def left_out(paths: Sequence[str]) -> list[str]:
    """Of the files in a place, those that may run code when they are loaded, and that are therefore no model's."""
    pickles = sorted(filter(_is_pickle, paths))
    if not pickles:
        return []
    folders = {str(PurePosixPath(path).parent) for path in paths if _is_vocabulary(path)}
    return [path for path in pickles if not _is_ctranslate2(path, folders)]


def hub_files(paths: Sequence[str], tag: str | None) -> list[str]:
    """Of the files in a hub's repository, those to fetch. tag: a quantization such as `Q4_K_M`.

    Raises UnsupportedFormat.
    """
    return [*_loaded_files(paths, tag), *(path for path in paths if path == SIGNATURE)]


def _loaded_files(paths: Sequence[str], tag: str | None) -> list[str]:
    ggufs = [path for path in paths if path.lower().endswith(".gguf") and "mmproj" not in path.lower()]
    plain = [path for path in paths if path.endswith(_HUB_FILES) and _is_loaded(path)]
    tensors = [path for path in plain if path.endswith(".safetensors")]
    if tag is None and tensors:
        return _without_second_copies(plain)
    if ggufs:
        return _of_quantization(ggufs, tag)
    if tag is not None:
        raise UnsupportedFormat(
            f"the repository has no GGUF files, so there is no {tag} to choose; leave ':{tag}' out"
        )
    raise UnsupportedFormat(_nothing_found(paths))


def quantization_of(path: str) -> str:
    """The quantization in a GGUF file's name, in capitals; empty if it says none."""
    names = _QUANTIZATION.findall(PurePosixPath(path).name.removesuffix(".gguf"))
    return str(names[-1]).upper() if names else ""


def gguf_models(paths: Iterable[str]) -> set[str]:
    """Of the models that lie there as GGUF, whole or in shards, their names without suffix."""
    stems = [path[: -len(".gguf")] for path in paths if path.lower().endswith(".gguf")]
    return {_SHARD.sub(r"\g<whole>", stem) for stem in stems}


def _of_quantization(ggufs: Sequence[str], tag: str | None) -> list[str]:
    by_name: dict[str, list[str]] = defaultdict(list)
    for path in sorted(ggufs):
        by_name[quantization_of(path)].append(path)
    if tag is None and len(by_name) > 1:
        tag = "Q4_K_M"
    chosen = next(iter(by_name.values())) if tag is None else by_name.get(tag.upper(), [])
    wholes = gguf_models(chosen)
    if len(wholes) == 1:
        return chosen
    names = ", ".join(sorted(name for name in by_name if name))
    if not wholes:
        raise UnsupportedFormat(
            f"the repository has no {tag}; say which to fetch after a ':', one of {names}"
        )
    raise UnsupportedFormat(
        f"the repository has several models in {tag or 'GGUF'}: {', '.join(sorted(wholes)[:5])}"
    )


def _is_loaded(path: str) -> bool:
    """In the top folder, or in one of sentence-transformers' own. Others hold the same for other engines."""
    folder, _, name = path.rpartition("/")
    return not folder or ("/" not in folder and folder[:1].isdigit() and name == "config.json")


def _without_second_copies(paths: Sequence[str]) -> list[str]:
    """Some publishers put the same weights there twice, as model-* and as consolidated*."""
    has_model = any(path.startswith("model") and path.endswith(".safetensors") for path in paths)
    return [path for path in paths if not (has_model and path.startswith("consolidated"))]


def _weights(paths: Iterable[str]) -> list[str]:
    return [
        path
        for path in paths
        if path.lower().endswith((".gguf", ".safetensors", ".onnx")) or path in ("model.bin", "am/final.mdl")
    ]


def _weight_folders(members: Sequence[str]) -> set[str]:
    """Folders that hold weights, or a part of them; of Vosk's, the one above `am`."""
    folders = set()
    for member in members:
        whole, _ = _whole(member)
        folder, _, name = whole.rpartition("/")
        if whole.endswith("/am/final.mdl"):
            folders.add(whole.removesuffix("/am/final.mdl"))
        elif _weights([name]):
            folders.add(folder)
    return {folder for folder in folders if not any(_is_below(folder, other) for other in folders)}


def _matching_folders(members: Sequence[str], pattern: str) -> set[str]:
    depth = pattern.count("/") + 1
    folders = {"/".join(member.split("/")[:depth]) for member in members if member.count("/") >= depth}
    return {folder for folder in folders if fnmatchcase(folder, pattern)}


def _below(members: Sequence[str], roots: set[str]) -> Iterable[tuple[str, str]]:
    for member in members:
        for root in roots:
            if _is_below(member, root) and not member.endswith("/"):
                yield member, member[len(root) + 1 :] if root else member


def _is_below(path: str, folder: str) -> bool:
    return path != folder and (not folder or path.startswith(f"{folder}/"))


def _whole(path: str) -> tuple[str, int | None]:
    """(the file that a part belongs to, the number of the part), or the path itself."""
    match = _PART.fullmatch(path)
    return (match["whole"], int(match["number"])) if match else (path, None)


def _in_order(pieces: Sequence[Piece]) -> list[Piece]:
    by_file: dict[str, list[tuple[int | None, Piece]]] = defaultdict(list)
    for piece in pieces:
        whole, number = _whole(piece.path)
        by_file[whole].append((number, Piece(piece.archive, piece.member, whole)))
    check_paths(by_file)
    ordered: list[Piece] = []
    for path, parts in by_file.items():
        numbers = sorted(-1 if number is None else number for number, _ in parts)
        first = numbers[0]
        if numbers != list(range(first, first + len(numbers))) or (first not in (0, 1) and numbers != [-1]):
            raise UnsupportedFormat(
                f"{path} is split and a part of it is missing, or there twice; nothing was taken"
            )
        ordered += [piece for _, piece in sorted(parts, key=_number)]
    return ordered


def _number(part: tuple[int | None, Piece]) -> int:
    return part[0] or 0


def _is_vocabulary(path: str) -> bool:
    return PurePosixPath(path).name.startswith("vocabulary.")


def _is_ctranslate2(path: str, folders: set[str]) -> bool:
    """Weights of CTranslate2, which are called as pickles are. folders: those with a vocabulary."""
    pure = PurePosixPath(path)
    return pure.name == "model.bin" and str(pure.parent) in folders


def _is_pickle(path: str) -> bool:
    return path.lower().endswith(PICKLES)


def _nothing_found(paths: Iterable[str]) -> str:
    pickles = sorted(filter(_is_pickle, paths))
    why = "has no weights that Lares loads (GGUF, safetensors with config.json, CTranslate2 Whisper, Vosk)"
    if pickles:
        shown = ", ".join(pickles[:3]) + (", ..." if len(pickles) > 3 else "")
        why += f"; {shown} may run code when loaded and was not fetched: ask for safetensors"
    return f"the source {why}"
