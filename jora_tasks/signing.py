"""Signed statements: DSSE envelopes with Ed25519, made and checked offline.

DSSE is the "Dead Simple Signing Envelope", version 1 (github.com/secure-systems-lab/dsse). What is signed is
PAE(type, body), so a signature over one type of payload is none over another. Ed25519 is RFC 8032.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jora_tasks.errors import InputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

IN_TOTO = "application/vnd.in-toto+json"
Envelope = dict[str, Any]


class BadSignature(ValueError):
    """An envelope that a key did not sign as it is; the message says which of the two it is."""


def pae(payload_type: str, payload: bytes) -> bytes:
    """Pre-Authentication Encoding: ``DSSEv1 <len> <type> <len> <body>``, lengths in bytes.

    >>> pae("http://example.com/HelloWorld", b"hello world")
    b'DSSEv1 29 http://example.com/HelloWorld 11 hello world'
    """
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign(payload: bytes, key: Ed25519PrivateKey) -> Envelope:
    """The envelope of an in-toto statement; the same for the same payload and key."""
    return {
        "payloadType": IN_TOTO,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [
            {
                "keyid": key_id(key.public_key()),
                "sig": base64.b64encode(key.sign(pae(IN_TOTO, payload))).decode(),
            }
        ],
    }


def payload_of(envelope: Envelope) -> bytes:
    """What an envelope holds, unchecked.

    Raises:
      BadSignature: if it is no envelope of an in-toto statement.
    """
    try:
        if envelope["payloadType"] != IN_TOTO:
            raise BadSignature("it is no in-toto statement")
        return base64.b64decode(envelope["payload"], validate=True)
    except (KeyError, TypeError, binascii.Error):
        raise BadSignature("it is no DSSE envelope") from None


def check(envelope: Envelope, key: Ed25519PublicKey) -> bytes:
    """The payload, if this key signed it.

    Raises:
      BadSignature: if another key did, or what it signed was altered.
    """
    from cryptography.exceptions import InvalidSignature

    payload = payload_of(envelope)
    try:
        signatures = {each["keyid"]: base64.b64decode(each["sig"]) for each in envelope["signatures"]}
    except (KeyError, TypeError, ValueError):
        raise BadSignature("it is no DSSE envelope") from None
    if key_id(key) not in signatures:
        others = ", ".join(str(each)[:16] for each in signatures) or "nobody"
        raise BadSignature(f"signed by key {others}, not by {key_id(key)[:16]}")
    try:
        key.verify(signatures[key_id(key)], pae(IN_TOTO, payload))
    except InvalidSignature:
        raise BadSignature("the statement or its signature was altered after signing") from None
    return payload


def key_id(key: Ed25519PublicKey) -> str:
    """SHA-256 of the public key as DER, in hex."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def private_key(file: Path) -> Ed25519PrivateKey:
    """The key of a PEM file.

    Raises:
      InputError: naming the file, and nothing of what it holds.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = _load(file, lambda data: load_pem_private_key(data, password=None))
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{file} is no private Ed25519 key; make one: openssl genpkey -algorithm ed25519.")
    return key


def public_key(file: Path) -> Ed25519PublicKey:
    """The public key of a PEM file; as `private_key`."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    key = _load(file, load_pem_public_key)
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(f"{file} is no public Ed25519 key; take it: openssl pkey -in KEY -pubout.")
    return key


def _load(file: Path, read: Any) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        return read(file.read_bytes())
    except OSError as error:
        raise InputError(f"The key {file} cannot be read: {error.strerror}.") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):  # another format, or a password is needed
        return None
