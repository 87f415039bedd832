"""Signatures of the real tool (signed/), and such as it would not make, signed with keys made here."""

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from services.downloader.adapters.signature_check import check_signature
from services.downloader.adapters.worker_inspector import WorkerInspector
from services.downloader.core.models import FindingKind
from services.kit.errors import DigestMismatch, FailedPrecondition

SIGNED = Path(__file__).with_name("signed")
PAYLOAD_TYPE = "application/vnd.in-toto+json"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


FILES = {"config.json": sha256(b'{"a": 1}\n'), "model.safetensors": sha256(b"weights")}


def checked(signature: str, key: str, digests: dict[str, str] = FILES) -> FindingKind:
    content = (SIGNED / signature).read_bytes()
    return check_signature(content, [(key, (SIGNED / key).read_bytes())], digests).kind


@pytest.mark.parametrize(
    ("signature", "key"), [("key.sig", "publisher.pub"), ("cert.sig", "root.pem"), ("cert.sig", "leaf.pem")]
)
def test_what_the_tool_signed_is_known_by_its_key_or_by_who_certified_it(signature: str, key: str) -> None:
    assert checked(signature, key) is FindingKind.SIGNED
    # The README was signed too, and is not pulled; of a part of the files no other is missed.
    assert checked(signature, key, {"config.json": FILES["config.json"]}) is FindingKind.SIGNED


@pytest.mark.parametrize(("signature", "key"), [("key.sig", "publisher.pub"), ("cert.sig", "root.pem")])
@pytest.mark.parametrize(
    "digests",
    [
        FILES | {"config.json": "0" * 64},
        FILES | {"more.json": "0" * 64},
        {"CONFIG.JSON": FILES["config.json"]},
    ],
)
def test_another_file_than_was_signed_is_refused_by_name(
    signature: str, key: str, digests: dict[str, str]
) -> None:
    with pytest.raises(DigestMismatch, match=r"(config|more|CONFIG)\.(json|JSON): not what was signed"):
        checked(signature, key, digests)


@pytest.mark.parametrize(
    ("signature", "key"),
    [
        ("key.sig", "other.pub"),
        ("key.sig", "root.pem"),
        ("cert.sig", "publisher.pub"),
        ("cert.sig", "stranger"),
    ],
)
def test_a_signature_by_somebody_else_counts_as_none(signature: str, key: str) -> None:
    if key == "stranger":
        assert check_signature((SIGNED / signature).read_bytes(), [], FILES).kind is FindingKind.UNSIGNED
        return
    assert checked(signature, key) is FindingKind.UNSIGNED


class Signer:
    """Signs whatever it is told to."""

    def __init__(self, curve: ec.EllipticCurve | None = None) -> None:
        self.key = ec.generate_private_key(curve or ec.SECP256R1())
        self.pem = public_pem(self.key.public_key())

    def statement(self, files: dict[str, str]) -> dict[str, Any]:
        resources = [
            {"name": name, "algorithm": "sha256", "digest": digest} for name, digest in files.items()
        ]
        digest = sha256(b"".join(bytes.fromhex(digest) for digest in files.values()))
        return {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"name": "m", "digest": {"sha256": digest}}],
            "predicateType": "https://model_signing/signature/v1.0",
            "predicate": {
                "serialization": {"method": "files", "hash_type": "sha256"},
                "resources": resources,
            },
        }

    def bundle(self, statement: object, hash_: hashes.HashAlgorithm | None = None) -> dict[str, Any]:
        payload = json.dumps(statement).encode()
        signed = b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)
        signature = self.key.sign(signed, ec.ECDSA(hash_ or hashes.SHA256()))
        return {
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {"publicKey": {"hint": sha256(self.pem)}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": base64.b64encode(payload).decode(),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
            },
        }

    def check(self, bundle: object) -> FindingKind:
        return check_signature(json.dumps(bundle).encode(), [("k.pub", self.pem)], FILES).kind


def public_pem(key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.PEM, form)


@pytest.mark.parametrize(
    ("curve", "hash_"),
    [(ec.SECP256R1(), hashes.SHA256()), (ec.SECP384R1(), hashes.SHA384()), (ec.SECP521R1(), hashes.SHA512())],
)
def test_each_curve_signs_with_its_own_hash(curve: ec.EllipticCurve, hash_: hashes.HashAlgorithm) -> None:
    signer = Signer(curve)
    assert signer.check(signer.bundle(signer.statement(FILES), hash_)) is FindingKind.SIGNED


def flip_payload(bundle: dict[str, Any]) -> None:
    payload = base64.b64decode(bundle["dsseEnvelope"]["payload"])
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload.replace(b'"m"', b'"n"')).decode()


def two_signatures(bundle: dict[str, Any]) -> None:
    bundle["dsseEnvelope"]["signatures"] *= 2


def other_type(bundle: dict[str, Any]) -> None:
    bundle["dsseEnvelope"]["payloadType"] = "text/plain"


def no_base64(bundle: dict[str, Any]) -> None:
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = "?"


def no_envelope(bundle: dict[str, Any]) -> None:
    del bundle["dsseEnvelope"]


@pytest.mark.parametrize("spoil", [flip_payload, two_signatures, other_type, no_base64, no_envelope])
def test_a_spoiled_signature_of_somebody_trusted_is_refused(spoil: Callable[[dict[str, Any]], None]) -> None:
    signer = Signer()
    bundle = signer.bundle(signer.statement(FILES))
    spoil(bundle)
    with pytest.raises(DigestMismatch, match=r"model\.sig"):
        signer.check(bundle)


def test_a_statement_whose_subject_is_something_else_is_refused() -> None:
    signer = Signer()
    statement = signer.statement(FILES)
    statement["subject"][0]["digest"]["sha256"] = "0" * 64
    with pytest.raises(DigestMismatch, match="other files than it lists"):
        signer.check(signer.bundle(statement))


def test_what_is_signed_in_a_form_that_is_not_checked_counts_as_unsigned() -> None:
    signer = Signer()
    shards = signer.statement(FILES)
    shards["predicate"]["serialization"]["method"] = "shards"
    blake = signer.statement(FILES)
    blake["predicate"]["resources"][0]["algorithm"] = "blake2b"
    older = signer.statement(FILES) | {"predicateType": "https://model_signing/Digests/v0.1"}
    for statement in (shards, blake, older):
        assert signer.check(signer.bundle(statement)) is FindingKind.UNSIGNED


def test_a_key_that_cannot_be_used_is_named() -> None:
    weak = public_pem(rsa.generate_private_key(65537, 2048).public_key())
    for pem in (b"", b"nonsense", weak, b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        with pytest.raises(FailedPrecondition, match=r"downloader\.trusted_keys: k\.pub"):
            check_signature((SIGNED / "key.sig").read_bytes(), [("k.pub", pem)], FILES)


@given(st.binary(max_size=400), st.integers(0, 4000), st.sampled_from(["key.sig", "cert.sig"]))
def test_no_signature_that_was_touched_is_taken(noise: bytes, at: int, name: str) -> None:
    whole = (SIGNED / name).read_bytes()
    touched = whole[:at] + noise + whole[at + len(noise) :]
    keys = [(key, (SIGNED / key).read_bytes()) for key in ("publisher.pub", "root.pem")]
    try:
        kind = check_signature(touched, keys, {"config.json": "0" * 64}).kind
    except DigestMismatch:
        return
    assert kind is FindingKind.UNSIGNED


async def test_a_signature_is_checked_in_a_process_of_its_own(tmp_path: Path) -> None:
    keys = [SIGNED / "publisher.pub"]
    found = await WorkerInspector().verify(SIGNED / "key.sig", keys, FILES)
    assert (found.kind, found.path) == (FindingKind.SIGNED, "model.sig")
    with pytest.raises(DigestMismatch):
        await WorkerInspector().verify(SIGNED / "key.sig", keys, {"x": "0" * 64})
    with pytest.raises(FailedPrecondition, match=r"gone\.pub cannot be read"):
        await WorkerInspector().verify(SIGNED / "key.sig", [tmp_path / "gone.pub"], FILES)
