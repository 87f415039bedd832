"""Makes small wheels and GGUF files for tests."""

import base64
import hashlib
import io
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path


def make_wheel(
    folder: Path,
    name: str,
    version: str,
    files: Mapping[str, bytes],
    *,
    record: Mapping[str, bytes] | None = None,
) -> Path:
    """A wheel with these files. record: what RECORD says of them, if not the truth."""
    path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    path.write_bytes(wheel_bytes(name, version, files, record=record))
    return path


def wheel_bytes(
    name: str,
    version: str,
    files: Mapping[str, bytes],
    *,
    record: Mapping[str, bytes] | None = None,
    compression: int = zipfile.ZIP_DEFLATED,
) -> bytes:
    """The same, in memory. compression: as `zipfile` calls it."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    said = {**files, **(record or {})}
    lines = [
        f"{path},sha256={_digest(said[path])},{len(said[path])}" for path in files if said[path] is not None
    ]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for path, content in files.items():
            archive.writestr(path, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "\n".join([*lines, f"{info}/RECORD,,", ""]))
    return buffer.getvalue()


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")


def gguf_bytes(
    *,
    architecture: str = "llama",
    template: str = "{{ messages }}",
    license: str = "",
    license_name: str = "",
    tensors: tuple[tuple[int, ...], ...] = ((4, 8),),
) -> bytes:
    """A GGUF file of version 3 with a header as real ones have, and no tensor data worth speaking of."""
    values = [
        _key("general.architecture") + _text_value(architecture),
        _key(f"{architecture}.context_length") + struct.pack("<II", 4, 2048),
        _key("general.file_type") + struct.pack("<II", 4, 3),
        _key("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + _text("a") + _text("bc"),
        _key("tokenizer.ggml.scores") + struct.pack("<IIQff", 9, 6, 2, 0.0, 1.0),
    ]
    if license:
        values.append(_key("general.license") + _text_value(license))
        values.append(_key("general.license.name") + _text_value(license_name))
    if template:
        values.append(_key("tokenizer.chat_template") + _text_value(template))
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values)) + b"".join(values)
    for number, shape in enumerate(tensors):
        dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        header += _text(f"blk.{number}.weight") + dimensions + struct.pack("<IQ", 0, 0)
    return header + bytes(256)


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


_key = _text


def _text_value(text: str) -> bytes:
    return struct.pack("<I", 8) + _text(text)
