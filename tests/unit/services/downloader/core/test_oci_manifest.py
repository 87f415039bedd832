"""Manifests as Ollama writes them, and as somebody writes them who means harm."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.downloader.core.oci_manifest import Layer, digest_of, parse_manifest
from services.kit.errors import UnsupportedFormat
from tests.docker_registry import manifest_of, ollama_layer

OCI = "application/vnd.oci.image.manifest.v1+json"
WEIGHTS = (ollama_layer("model"), b"GGUF")


def edited(**more: Any) -> bytes:
    return json.dumps(json.loads(manifest_of([WEIGHTS])) | more).encode()


def with_layer(**changes: Any) -> bytes:
    manifest = json.loads(manifest_of([WEIGHTS]))
    manifest["layers"][0].update(changes)
    return json.dumps(manifest).encode()


@pytest.mark.parametrize("media_type", ["application/vnd.docker.distribution.manifest.v2+json", OCI])
def test_layers_become_files_and_the_weights_come_first(media_type: str) -> None:
    kinds = ("license", "params", "model", "template", "system", "messages", "license", "projector", "draft")
    layers = [(ollama_layer(kind), kind.encode()) for kind in kinds]
    found = parse_manifest(manifest_of(layers, media_type=media_type))
    assert found[0] == Layer("model.gguf", digest_of(b"model"), 5)
    assert [layer.path for layer in found[1:]] == [
        "params.json",
        "template",
        "system",
        "messages.json",
        "license",
        "license-2",
    ]


def test_a_manifest_of_oci_need_not_say_its_media_type() -> None:
    manifest = json.loads(edited())
    del manifest["mediaType"]
    assert parse_manifest(json.dumps(manifest).encode())[0].path == "model.gguf"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", "no table"),
        (edited(manifests=[]), "list of manifests"),
        (edited(mediaType="application/vnd.oci.image.index.v1+json"), "list of manifests"),
        (
            edited(mediaType="application/vnd.docker.distribution.manifest.list.v2+json"),
            "list of manifests",
        ),
        (edited(schemaVersion=1), "version 2"),
        (edited(mediaType="application/vnd.docker.distribution.manifest.v1+prettyjws"), "version 2"),
        (edited(mediaType=["x"]), "version 2"),
        (edited(layers=None), "list of at most"),
        (edited(layers=[{}] * 65), "list of at most"),
        (edited(layers=[{}]), "not described"),
        (edited(layers=[]), "0 layers for model.gguf"),
        (manifest_of([WEIGHTS, WEIGHTS]), "2 layers for model.gguf"),
        (manifest_of([WEIGHTS, (ollama_layer("system"), b"a"), (ollama_layer("system"), b"b")]), "2 layers"),
        (manifest_of([WEIGHTS, (ollama_layer("adapter"), b"lora")]), "image.adapter"),
        (manifest_of([(ollama_layer("tensor"), b"x")]), "image.tensor"),
        (manifest_of([WEIGHTS, ("application/vnd.docker.image.rootfs.diff.tar.gzip", b"x")]), "rootfs"),
        (manifest_of([("model", b"x")]), "of the kind 'model'"),
        (with_layer(size=-1), "claims to have -1"),
        (with_layer(size=2**60), "claims to have"),
        (with_layer(size=True), "not described"),
        (with_layer(size=1.5), "not described"),
        (with_layer(mediaType=ollama_layer("license"), size=5_000_000), "claims to have"),
    ],
)
def test_what_is_no_model_of_one_gguf_file_is_refused_with_the_reason(body: bytes, why: str) -> None:
    with pytest.raises(UnsupportedFormat, match=why):
        parse_manifest(body)


@given(
    st.text()
    | st.sampled_from(
        ["../../etc/passwd", "sha256:" + "../" * 22, "sha256-" + "0" * 64, "sha512:" + "0" * 64]
    )
    | st.from_regex(r"sha256:[0-9a-fA-F]{63,65}", fullmatch=True)
)
def test_a_digest_is_64_hex_digits_or_refused(digest: str) -> None:
    if re.fullmatch("sha256:[0-9a-f]{64}", digest):
        (layer,) = parse_manifest(with_layer(digest=digest))
        assert layer.digest == digest
        return
    with pytest.raises(UnsupportedFormat) as caught:
        parse_manifest(with_layer(digest=digest))
    assert caught.value.message.isprintable()
