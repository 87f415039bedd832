"""Whether a model's files are those that somebody signed whom the operator trusts. It runs in a worker.

`model.sig` is a sigstore bundle around an in-toto statement (https://github.com/ossf/model-signing-spec): the names and
digests of all files, signed with an elliptic-curve key as https://github.com/secure-systems-lab/dsse describes.

Of a repository only what a model is loaded from is pulled: what was pulled must be in the statement, what is in the
statement need not have been pulled. That, and to take the digests that are known instead of reading all files again,
is what the library of that format does not offer. Signatures through sigstore's own services name a person instead of
a key, and need those services to be checked: they count as none.
"""

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID

from services.downloader.core.models import Finding, FindingKind, FindingSeverity
from services.downloader.core.selection import SIGNATURE
from services.kit.errors import DigestMismatch, FailedPrecondition

SETTING: Final = "downloader.trusted_keys"

_PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
_PREDICATE_TYPE: Final = "https://model_signing/signature/v1.0"
_HASHES: Final[Mapping[str, type[hashes.HashAlgorithm]]] = {
    "secp256r1": hashes.SHA256,
    "secp384r1": hashes.SHA384,
    "secp521r1": hashes.SHA512,
}
_MAX_SHOWN: Final = 3


class _Key(msgspec.Struct):
    hint: str | None = None


class _Certificate(msgspec.Struct):
    rawBytes: str


class _Chain(msgspec.Struct):
    certificates: list[_Certificate]


class _Material(msgspec.Struct):
    publicKey: _Key | None = None
    x509CertificateChain: _Chain | None = None


class _Signed(msgspec.Struct):
    sig: str


class _Envelope(msgspec.Struct):
    payload: str
    payloadType: str
    signatures: list[_Signed]


class _Bundle(msgspec.Struct):
    verificationMaterial: _Material
    dsseEnvelope: _Envelope


class _Subject(msgspec.Struct):
    digest: dict[str, str]


class _Serialization(msgspec.Struct):
    method: str


class _Resource(msgspec.Struct):
    name: str
    algorithm: str
    digest: str


class _Predicate(msgspec.Struct):
    serialization: _Serialization
    resources: list[_Resource]


class _Statement(msgspec.Struct):
    subject: list[_Subject]
    predicateType: str
    predicate: _Predicate


@dataclass(frozen=True, slots=True)
class _Trusted:
    """What was configured. keys: by the sha256 of their PEM, in hex. names: of their files, as people know them."""

    keys: Mapping[str, tuple[str, ec.EllipticCurvePublicKey]]
    certificates: Sequence[x509.Certificate]


def check_signature(
    signature: bytes, keys: Sequence[tuple[str, bytes]], digests: Mapping[str, str]
) -> Finding:
    """keys: names of files, and the public keys and certificates in them, in PEM. digests: sha256 in hex, by path.

    Returns SIGNED, or UNSIGNED if it is by somebody else, or in a form that is not checked. Raises DigestMismatch if it
    is by somebody trusted and the files are others, FailedPrecondition for a key that cannot be read.
    """
    trusted = _trusted(keys)
    try:
        bundle = msgspec.json.decode(signature, type=_Bundle)
        envelope = bundle.dsseEnvelope
        payload = _decoded(envelope.payload)
        [signed] = [_decoded(each.sig) for each in envelope.signatures]
        signer = _signer(bundle.verificationMaterial, trusted)
        if signer is None:
            return _unsigned(f"it is signed by nobody who is among {SETTING}")
        name, key = signer
        _verify(key, signed, envelope.payloadType, payload)
        statement = msgspec.json.decode(payload, type=_Statement)
    except (ValueError, RecursionError, UnsupportedAlgorithm, x509.DuplicateExtension) as error:
        raise DigestMismatch(f"{SIGNATURE} is no signature that can be read; nothing was recorded") from error
    except InvalidSignature as error:
        raise DigestMismatch(f"{SIGNATURE} is not by the key that it names; nothing was recorded") from error
    resources = statement.predicate.resources
    is_known = (
        statement.predicateType == _PREDICATE_TYPE and statement.predicate.serialization.method == "files"
    )
    if not is_known or any(resource.algorithm != "sha256" for resource in resources):
        return _unsigned(
            f"it is signed by {name}, in a form that is not checked: only sha256 of whole files is"
        )
    _check_whole(statement)
    _check_files({resource.name: resource.digest for resource in resources}, digests)
    what = f"the files are those that {name} has signed"
    return Finding.of(FindingKind.SIGNED, FindingSeverity.INFO, SIGNATURE, what)


def _unsigned(why: str) -> Finding:
    return Finding.of(FindingKind.UNSIGNED, FindingSeverity.WARNING, SIGNATURE, why)


def _trusted(keys: Sequence[tuple[str, bytes]]) -> _Trusted:
    found: dict[str, tuple[str, ec.EllipticCurvePublicKey]] = {}
    certificates: list[x509.Certificate] = []
    for name, pem in keys:
        try:
            if b"BEGIN CERTIFICATE" in pem:
                certificates += x509.load_pem_x509_certificates(pem)
                continue
            key = load_pem_public_key(pem)
        except ValueError as error:
            raise FailedPrecondition(
                f"{SETTING}: {name} is neither a public key nor a certificate in PEM"
            ) from error
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _HASHES:
            raise FailedPrecondition(f"{SETTING}: {name} is no key on the curves P-256, P-384 or P-521")
        found[_hint(key)] = (name, key)
    return _Trusted(found, certificates)


def _hint(key: ec.EllipticCurvePublicKey) -> str:
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()


def _signer(material: _Material, trusted: _Trusted) -> tuple[str, ec.EllipticCurvePublicKey] | None:
    """Whose signature it says it is, if that is somebody trusted. Raises ValueError for what is no certificate."""
    if material.x509CertificateChain is not None:
        chain = [
            x509.load_der_x509_certificate(_decoded(each.rawBytes))
            for each in material.x509CertificateChain.certificates
        ]
        return _certified(chain, trusted.certificates) if chain else None
    # An old one has no hint. Whose it is could be tried out; who signs anew need not be guessed.
    hint = material.publicKey.hint if material.publicKey is not None else None
    return trusted.keys.get(hint) if hint else None


def _certified(
    chain: Sequence[x509.Certificate], trusted: Sequence[x509.Certificate]
) -> tuple[str, ec.EllipticCurvePublicKey] | None:
    """The name and key of the first certificate, if the others lead from a trusted one to it."""
    leaf, *between = chain
    key = leaf.public_key()
    if not trusted or not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _HASHES:
        return None
    if leaf not in trusted:
        # At the time that it was made for: when it signed is not proven, and models are kept longer than certificates.
        policy = (
            verification.PolicyBuilder()
            .store(verification.Store(list(trusted)))
            .time(leaf.not_valid_before_utc)
            .extension_policies(
                ca_policy=verification.ExtensionPolicy.webpki_defaults_ca(),
                ee_policy=verification.ExtensionPolicy.permit_all(),
            )
        )
        try:
            policy.build_client_verifier().verify(leaf, between)
        except verification.VerificationError:
            return None
    return (leaf.subject.rfc4514_string(), key) if _may_sign(leaf) else None


def _may_sign(certificate: x509.Certificate) -> bool:
    try:
        if certificate.extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature:
            return True
    except x509.ExtensionNotFound:
        pass
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return ExtendedKeyUsageOID.CODE_SIGNING in usages


def _verify(key: ec.EllipticCurvePublicKey, signed: bytes, payload_type: str, payload: bytes) -> None:
    """Raises InvalidSignature, ValueError for another payload than a statement."""
    if payload_type != _PAYLOAD_TYPE:
        raise ValueError(payload_type)
    message = b"DSSEv1 %d %s %d %s" % (len(_PAYLOAD_TYPE), _PAYLOAD_TYPE.encode(), len(payload), payload)
    key.verify(signed, message, ec.ECDSA(_HASHES[key.curve.name]()))


def _check_whole(statement: _Statement) -> None:
    """The subject is the digest of all digests. Raises DigestMismatch."""
    try:
        digests = b"".join(bytes.fromhex(each.digest) for each in statement.predicate.resources)
    except ValueError as error:
        raise DigestMismatch(f"{SIGNATURE} holds what is no digest; nothing was recorded") from error
    if [each.digest for each in statement.subject] != [{"sha256": hashlib.sha256(digests).hexdigest()}]:
        raise DigestMismatch(f"{SIGNATURE} is about other files than it lists; nothing was recorded")


def _check_files(signed: Mapping[str, str], digests: Mapping[str, str]) -> None:
    wrong = [path for path, digest in digests.items() if signed.get(path) != digest]
    if wrong:
        shown = ", ".join(wrong[:_MAX_SHOWN]) + (
            f" and {len(wrong) - _MAX_SHOWN} more" if wrong[_MAX_SHOWN:] else ""
        )
        raise DigestMismatch(f"{shown}: not what was signed, by {SIGNATURE}; nothing was recorded")


def _decoded(text: str) -> bytes:
    """Raises ValueError."""
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(text[:40]) from error
