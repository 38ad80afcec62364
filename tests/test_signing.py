"""DSSE envelopes: what is signed, and what each alteration of one is called."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from jora_tasks.errors import InputError
from jora_tasks.signing import BadSignature, check, key_id, pae, private_key, public_key, sign

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@pytest.mark.parametrize(
    ("kind", "payload", "encoded"),
    [
        # protocol.md of DSSE v1
        (
            "http://example.com/HelloWorld",
            b"hello world",
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world",
        ),
        ("", b"", b"DSSEv1 0  0 "),
        ("é", "ü ".encode(), b"DSSEv1 2 \xc3\xa9 3 \xc3\xbc "),  # lengths count bytes
    ],
)
def test_what_is_signed(kind: str, payload: bytes, encoded: bytes) -> None:
    assert pae(kind, payload) == encoded


def test_a_signature_is_that_of_the_encoding() -> None:
    envelope = sign(b'{"a": 1}', KEY)
    assert envelope == sign(b'{"a": 1}', KEY)
    assert json.loads(json.dumps(envelope)) == envelope
    (signature,) = envelope["signatures"]
    KEY.public_key().verify(
        base64.b64decode(signature["sig"]), b'DSSEv1 28 application/vnd.in-toto+json 8 {"a": 1}'
    )
    assert signature["keyid"] == key_id(KEY.public_key())
    assert check(envelope, KEY.public_key()) == b'{"a": 1}'


def test_alterations_are_told_apart() -> None:
    envelope = sign(b'{"a": 1}', KEY)
    other = Ed25519PrivateKey.generate().public_key()
    (signature,) = envelope["signatures"]
    altered = base64.b64encode(b'{"a": 2}').decode()
    for changed, key, message in (
        (envelope, other, "signed by key .*, not by"),
        (envelope | {"payload": altered}, KEY.public_key(), "altered after signing"),
        (
            envelope | {"signatures": [signature | {"sig": base64.b64encode(bytes(64)).decode()}]},
            KEY.public_key(),
            "altered after signing",
        ),
        # a signature of this key under another one's name
        (
            envelope | {"signatures": [signature | {"keyid": key_id(other)}]},
            other,
            "altered after signing",
        ),
        (envelope | {"signatures": []}, KEY.public_key(), "signed by key nobody"),
        (envelope | {"payloadType": "text/plain"}, KEY.public_key(), "no in-toto statement"),
        (envelope | {"payload": "?"}, KEY.public_key(), "no DSSE envelope"),
        (envelope | {"signatures": [signature | {"sig": "é"}]}, KEY.public_key(), "no DSSE envelope"),
        (envelope | {"signatures": [1]}, KEY.public_key(), "no DSSE envelope"),
        ({}, KEY.public_key(), "no DSSE envelope"),
    ):
        with pytest.raises(BadSignature, match=message):
            check(changed, key)


def test_keys_come_from_pem_files(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"

    def pem(key: object, encryption: object) -> bytes:
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)  # type: ignore[attr-defined]

    file.write_bytes(pem(KEY, NoEncryption()))
    assert key_id(private_key(file).public_key()) == key_id(KEY.public_key())
    with pytest.raises(InputError, match=r"no public Ed25519 key; take it: openssl pkey"):
        public_key(file)
    for content in (
        pem(KEY, BestAvailableEncryption(b"secret")),
        pem(generate_private_key(SECP256R1()), NoEncryption()),
        b"-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----\n",
        b"",
    ):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"key\.pem is no private Ed25519 key; make one: ") as refused:
            private_key(file)
        assert "secret" not in str(refused.value)
    file.write_bytes(KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    assert key_id(public_key(file)) == key_id(KEY.public_key())
    with pytest.raises(InputError, match="cannot be read: No such file"):
        public_key(tmp_path / "none.pem")
