"""The handshake over TCP: worker and job prove to each other that they belong together.

    worker                                     master
      | <------------- version, challenge ------ |     GREETING bytes
      | -- name, challenge, proof -------------> |     REPLY bytes
      | <------------------------ rank, proof -- |     ADMISSION bytes; or the connection is closed

A proof is an HMAC of both challenges and the name or rank beside it, with a key that only the
processes of this job can read. Nothing is unpickled before the proofs. Messages after the handshake
are neither encrypted nor signed, as with Python's multiprocessing. Pure: bytes in, bytes out.
"""

from __future__ import annotations

import hmac
import secrets
import struct
from typing import Final

from mpipar.errors import UnavailableError
from mpipar.version import __version__

KEY_BYTES: Final = 32
NAME_BYTES: Final = 32
CHALLENGE_BYTES: Final = 32
PROOF_BYTES: Final = 32
ADMISSION: Final = 4 + PROOF_BYTES
GREETING: Final = 32 + CHALLENGE_BYTES
REPLY: Final = NAME_BYTES + CHALLENGE_BYTES + PROOF_BYTES

_VERSION: Final = f"mpipar {__version__}".encode().ljust(32)[:32]


def new_key() -> bytes:
    """Return a key for one job."""
    return secrets.token_bytes(KEY_BYTES)


def _proof(key: bytes, role: bytes, challenges: bytes, payload: bytes) -> bytes:
    return hmac.digest(key, role + challenges + payload, "sha256")


class ServerHandshake:
    """The master's side of one connection."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._challenge = secrets.token_bytes(CHALLENGE_BYTES)
        self.greeting = _VERSION + self._challenge
        self._reply = bytearray()

    @property
    def wanted(self) -> int:
        """How many bytes of the reply are still to come."""
        return REPLY - len(self._reply)

    def take(self, data: bytes) -> None:
        """Note bytes of the reply."""
        self._reply += data

    def verified_name(self) -> str | None:
        """Return the name of the worker, or None if its proof is wrong."""
        name, proof = bytes(self._reply[:NAME_BYTES]), bytes(self._reply[-PROOF_BYTES:])
        right = _proof(self._key, b"worker", self._challenges, name)
        if not hmac.compare_digest(right, proof):
            return None
        return name.rstrip(b"\0").decode()  # made by a `ClientHandshake`, as the proof is right

    def admission(self, rank: int) -> bytes:
        """Return the bytes that tell the worker its rank."""
        payload = struct.pack("<i", rank)
        return payload + _proof(self._key, b"master", self._challenges, payload)

    @property
    def _challenges(self) -> bytes:
        return self._challenge + bytes(self._reply[NAME_BYTES:-PROOF_BYTES])


class ClientHandshake:
    """The worker's side of one connection."""

    def __init__(self, key: bytes, name: str) -> None:
        self._key = key
        self._name = name.encode().ljust(NAME_BYTES, b"\0")
        if len(self._name) != NAME_BYTES:
            raise ValueError(f"a worker's name has at most {NAME_BYTES} bytes: {name!r}")
        self._challenge = secrets.token_bytes(CHALLENGE_BYTES)
        self._challenges = b""

    def reply(self, greeting: bytes) -> bytes:
        """Return the reply to a greeting. Raises UnavailableError if another version sent it."""
        version, challenge = greeting[:32], greeting[32:]
        if version != _VERSION:
            other = version.decode(errors="replace").strip()
            own = _VERSION.decode().strip()
            raise UnavailableError(
                f"this worker runs {own}, but what it was told to connect to is {other!r}; let "
                "both use the same installation"
            )
        self._challenges = challenge + self._challenge
        proof = _proof(self._key, b"worker", self._challenges, self._name)
        return self._name + self._challenge + proof

    def rank(self, admission: bytes) -> int | None:
        """Return the rank in an admission, or None if its proof is wrong."""
        payload, proof = admission[:-PROOF_BYTES], admission[-PROOF_BYTES:]
        if not hmac.compare_digest(_proof(self._key, b"master", self._challenges, payload), proof):
            return None
        return int(struct.unpack("<i", payload)[0])
