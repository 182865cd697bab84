"""The digest by which contents are known everywhere: BLAKE2b-128, as 32 hex digits."""

from __future__ import annotations

import hashlib
from typing import IO

_BLOCK = 1 << 20


def digest_of_bytes(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def digest_of_stream(stream: IO[bytes]) -> str:
    """Returns the digest of all that a stream still holds, read block by block."""
    digest = hashlib.blake2b(digest_size=16)
    while block := stream.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()
