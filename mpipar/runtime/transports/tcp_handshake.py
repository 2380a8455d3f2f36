"""How a worker that connects over TCP shows that it belongs to a job, and the job that it is it.

    worker                                     master
      | <------------- version, challenge ------ |     SALUTE bytes
      | -- name, challenge, proof -------------> |     REPLY bytes
      | <------------------------ rank, proof -- |     VERDICT bytes; or the connection is closed

A proof is an HMAC of both challenges and what is said, with a key that only this job's processes
can read. Nothing that a stranger sends is ever unpickled. What follows is neither encrypted nor
signed, as with Python's multiprocessing. Pure: bytes in, bytes out.
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
PROOF: Final = 32
VERDICT: Final = 4 + PROOF
SALUTE: Final = 32 + CHALLENGE_BYTES
REPLY: Final = NAME_BYTES + CHALLENGE_BYTES + PROOF

_BANNER: Final = f"mpipar {__version__}".encode().ljust(32)[:32]


def new_key() -> bytes:
    """Return a key for one job."""
    return secrets.token_bytes(KEY_BYTES)


def _proof(key: bytes, role: bytes, challenges: bytes, said: bytes) -> bytes:
    return hmac.digest(key, role + challenges + said, "sha256")


class ServerHandshake:
    """The master's side of one connection."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._challenge = secrets.token_bytes(CHALLENGE_BYTES)
        self.salute = _BANNER + self._challenge
        self._reply = bytearray()

    @property
    def wanted(self) -> int:
        """How many bytes of the reply are still to come."""
        return REPLY - len(self._reply)

    def take(self, data: bytes) -> None:
        """Note bytes of the reply."""
        self._reply += data

    def judge(self) -> str | None:
        """Return the name of the worker, or None if it is a stranger."""
        name, proof = bytes(self._reply[:NAME_BYTES]), bytes(self._reply[-PROOF:])
        right = _proof(self._key, b"worker", self._challenges, name)
        if not hmac.compare_digest(right, proof):
            return None
        return name.rstrip(b"\0").decode()  # what has the right proof was made by `UnverifiedPeer`

    def verdict(self, rank: int) -> bytes:
        """Return what makes a worker the rank of this number."""
        said = struct.pack("<i", rank)
        return said + _proof(self._key, b"master", self._challenges, said)

    @property
    def _challenges(self) -> bytes:
        return self._challenge + bytes(self._reply[NAME_BYTES:-PROOF])


class UnverifiedPeer:
    """The worker's side."""

    def __init__(self, key: bytes, name: str) -> None:
        self._key = key
        self._name = name.encode().ljust(NAME_BYTES, b"\0")
        if len(self._name) != NAME_BYTES:
            raise ValueError(f"a worker's name has at most {NAME_BYTES} bytes: {name!r}")
        self._challenge = secrets.token_bytes(CHALLENGE_BYTES)
        self._challenges = b""

    def reply(self, salute: bytes) -> bytes:
        """Return the reply to a salute. Raises UnavailableError if another mpipar sent it."""
        banner, challenge = salute[:32], salute[32:]
        if banner != _BANNER:
            other = banner.decode(errors="replace").strip()
            own = _BANNER.decode().strip()
            raise UnavailableError(
                f"this worker runs {own}, but what it was told to connect to is {other!r}; let "
                "both use the same installation"
            )
        self._challenges = challenge + self._challenge
        proof = _proof(self._key, b"worker", self._challenges, self._name)
        return self._name + self._challenge + proof

    def rank(self, verdict: bytes) -> int | None:
        """Return the rank given by a verdict, or None if it comes from a stranger."""
        said, proof = verdict[:-PROOF], verdict[-PROOF:]
        if not hmac.compare_digest(_proof(self._key, b"master", self._challenges, said), proof):
            return None
        return int(struct.unpack("<i", said)[0])
