"""What makes the ledger tamper-evident and erasable: the chain's hash, encrypted bodies, pseudonyms, signed heads.

The secrets lie in a file outside the database. With the database alone nobody reads a body, recognises a customer or
signs a head.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import secrets
import stat
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from serving.ledger.base import LedgerError
from serving.ledger.journal import Disk

_NONCE = 12


def canonical(value: Any) -> bytes:
    """One form of a JSON value, so that equal values have equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def genesis(ledger: str) -> str:
    """What the first record of a ledger is chained to."""
    return digest(f"doorstep ledger {ledger}".encode("utf-8", "surrogateescape"))  # of a damaged file, any bytes


def chained(record: Mapping[str, Any]) -> str:
    """The hash of a record: SHA-256 over the hash before it and all that stands in its row but the body itself.

    The body enters by the digest of its ciphertext, so that the chain verifies after the body is gone, and the digest
    tells nothing about what it was.
    """
    names = ("prev", "seq", "kind", "recorded_at", "key", "decision_id", "parcel", "key_id", "body_digest")
    return digest(canonical([record[n] for n in names]))


class Secrets:
    """The ledger's secrets: 32 bytes for pseudonyms and for wrapping customers' keys, and a signing key (Ed25519)."""

    def __init__(self, secret: bytes, signing: bytes) -> None:
        self._pseudonyms, self._wrapping = (hmac.digest(secret, use, "sha256") for use in (b"pseudonym", b"wrapping"))
        self._signing = Ed25519PrivateKey.from_private_bytes(signing)
        self.public = self._signing.public_key().public_bytes_raw().hex()
        self.fingerprint = digest(b"doorstep ledger secrets" + secret + bytes.fromhex(self.public))

    @staticmethod
    def load(path: Path) -> Secrets:
        """Read the file of secrets.

        Raises:
            LedgerError: there is none, others than its owner may read it, or it is no such file.
        """
        try:
            with path.open("rb") as f:
                mode = stat.S_IMODE(os.fstat(f.fileno()).st_mode)
                content = json.loads(f.read())
            if mode & 0o077:
                raise LedgerError(f"{path}: its mode is {mode:o}, others can read it: chmod 600 {path}")
            return Secrets(bytes.fromhex(content["secret"]), bytes.fromhex(content["signing"]))
        except FileNotFoundError:
            raise LedgerError(
                f"{path}: the ledger's key file is not there: put it back, or name it (DOORSTEP_LEDGER_KEY)"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise LedgerError(f"{path}: is no key file of a ledger ({error}): put back the right one") from None

    @staticmethod
    def load_or_make(path: Path, disk: Disk) -> Secrets:
        """Read the file of secrets, or make it: whole or not at all, once, whoever else tries at the same time."""
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            signing = Ed25519PrivateKey.generate().private_bytes_raw()
            content = {"doorstep": "ledger key file", "secret": secrets.token_hex(32), "signing": signing.hex()}
            part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
            file = disk.create(part)
            try:
                disk.write(file, canonical(content) + b"\n", 0)
                disk.sync(file)
            finally:
                os.close(file)
            try:
                os.link(part, path)
            except FileExistsError:
                pass
            finally:
                os.unlink(part)
            disk.sync_folder(path.parent)
        return Secrets.load(path)

    def pseudonym(self, *what: str) -> str:
        """A keyed pseudonym (HMAC-SHA256, hexadecimal) of texts, such as ("customer", its id)."""
        return hmac.digest(self._pseudonyms, "\0".join(what).encode(), "sha256").hex()

    def wrap(self, key: bytes, owner: str) -> bytes:
        """A customer's key as it stands in the database; `owner` is bound to it."""
        return encrypt(self._wrapping, key, owner)

    def unwrap(self, wrapped: bytes, owner: str) -> bytes:
        """A customer's key. Raises LedgerError."""
        return decrypt(self._wrapping, wrapped, owner)

    def sign(self, head: Mapping[str, Any]) -> str:
        """A signature of a head, hexadecimal."""
        return self._signing.sign(canonical(head)).hex()


def encrypt(key: bytes, plain: bytes, bound: str) -> bytes:
    """AES-256-GCM with a random nonce in front; `bound` must be given again to decrypt."""
    nonce = secrets.token_bytes(_NONCE)
    return nonce + AESGCM(key).encrypt(nonce, plain, bound.encode())


def decrypt(key: bytes, sealed: bytes, bound: str) -> bytes:
    """What `encrypt` sealed. Raises LedgerError if any of it is not what it was."""
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE], sealed[_NONCE:], bound.encode())
    except (InvalidTag, ValueError):
        raise LedgerError("does not decrypt") from None


def new_key() -> bytes:
    """A key for AES-256."""
    return AESGCM.generate_key(256)


@dataclass(frozen=True)
class Head:
    """A signed statement of where the chain stood.

    Attributes:
        line: its line in the file, from 1.
        seq, hash, at: the last record, its hash, when it was signed. seq is 0 where the line could not be read.
        fault: what is wrong with the line, empty if nothing is.
    """

    line: int
    seq: int
    hash: str
    at: str
    fault: str = ""


class Heads:
    """The file of signed heads, outside the database; only ever appended to, by any worker of the machine."""

    def __init__(self, path: Path, disk: Disk | None = None) -> None:
        self.path = Path(path)
        self.disk = disk or Disk()

    def append(self, keys: Secrets, ledger: str, seq: int, hash: str, at: str) -> None:
        """Sign where the chain stands and add it, durably. A last line that a crash left in pieces is removed first."""
        head = {"ledger": ledger, "seq": seq, "hash": hash, "at": at}
        data = canonical({**head, "signature": keys.sign(head)}) + b"\n"
        try:
            file = self.disk.open(self.path)
        except FileNotFoundError:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                file = self.disk.create(self.path)
                self.disk.sync_folder(self.path.parent)
            except FileExistsError:
                file = self.disk.open(self.path)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            end = _sound_end(file)
            if end < os.fstat(file).st_size:
                self.disk.truncate(file, end)
            self.disk.write(file, data, end)
            self.disk.sync(file)
        finally:
            os.close(file)

    def last(self) -> int:
        """The highest record that the last lines name; 0 if none does. Raises FileNotFoundError."""
        with self.path.open("rb") as f:
            f.seek(max(0, f.seek(0, os.SEEK_END) - _TAIL))
            lines = f.read().split(b"\n")[:-1]
        found = [0]
        for line in lines:
            with contextlib.suppress(*_BROKEN):
                found.append(_parsed(line)["seq"])
        return max(found)

    def read(self, ledger: str, public: str) -> Iterator[Head]:
        """Every line, its signature checked with a public key (hexadecimal).

        Raises:
            FileNotFoundError: there is no such file.
        """
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
        *lines, rest = self.path.read_bytes().split(b"\n")
        for number, line in enumerate(lines, 1):
            try:
                content = _parsed(line)
            except _BROKEN as error:
                yield Head(number, 0, "", "", f"is no signed head ({error})")
                continue
            signature = bytes.fromhex(content.pop("signature"))
            seq, hash, at, of = content["seq"], content["hash"], content["at"], content["ledger"]
            try:
                key.verify(signature, canonical(content))
            except InvalidSignature:
                fault = "its signature does not hold"
            else:
                fault = "" if of == ledger else "it is of another ledger"
            yield Head(number, seq, hash, at, fault)
        if rest:
            yield Head(len(lines) + 1, 0, "", "", "is cut short")


def _parsed(line: bytes) -> dict[str, Any]:
    """A line of the heads, in the one form it is written in. Raises what `_BROKEN` lists."""
    content: dict[str, Any] = json.loads(line)
    seq, texts = content["seq"], [content[n] for n in ("hash", "at", "ledger", "signature")]
    if not (isinstance(seq, int) and all(isinstance(t, str) for t in texts)):
        raise ValueError("fields of another type")
    if line != canonical({**content, "signature": bytes.fromhex(content["signature"]).hex()}):
        raise ValueError("not written as heads are")
    return content


_BROKEN = (ValueError, KeyError, TypeError, AttributeError)
_TAIL = 16_384
"""Bytes at the end of the heads that are looked at to append; a line has some 350."""


def _sound_end(file: int) -> int:
    """Offset after the last line that is whole: a power loss may cut the last one, or leave a hole in it."""
    size = os.fstat(file).st_size
    start = max(0, size - _TAIL)
    data = os.pread(file, size - start, start)
    end = data.rfind(b"\n") + 1
    try:
        _parsed(data[data.rfind(b"\n", 0, max(0, end - 1)) + 1 : end - 1] if end else b"")
    except _BROKEN:
        end = data.rfind(b"\n", 0, max(0, end - 1)) + 1
    return start + end
