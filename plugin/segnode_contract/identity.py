"""Derived identities: the same input, model and writer give the same job and the same UIDs."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping

WRITER_VERSION = "2"
"""Raised when the writer of results changes what it writes, so that old results are made anew."""

NAMESPACE = uuid.UUID("5c7a1b0e-6f0d-4d43-9a51-8a3b6f1f6f7e")


def content_digest(instance_uids: Iterable[str]) -> str:
    """Return the SHA-256 of the sorted SOP Instance UIDs, which is what a job was made for."""
    return hashlib.sha256("\n".join(sorted(instance_uids)).encode()).hexdigest()


def job_key(
    *,
    series_uids: Iterable[str],
    instance_uids: Iterable[str],
    model: str,
    model_digest: str,
    parameters: Mapping[str, object],
    form: str,
    builds_on: Iterable[str] = (),
    writer_version: str = WRITER_VERSION,
) -> str:
    """Return the SHA-256, 64 hex digits, over everything that decides what the result is.

    The files' bytes are left out on purpose: they change by transport.
    """
    identity = [
        sorted(series_uids),
        sorted(instance_uids),
        sorted(builds_on),
        model,
        model_digest,
        dict(parameters),
        form,
        writer_version,
    ]
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def revised(base_key: str, revision: int) -> str:
    """Return the key of a revision of the job `base_key`, which is its own revision 0.

    Each withdrawn result is followed by a job of the next revision, so that its UIDs are never
    used again.
    """
    if revision == 0:
        return base_key
    return hashlib.sha256(f"{base_key}|revision {revision}".encode()).hexdigest()


def derived_uid(key: str, role: str) -> str:
    """Return the UID of `role` (``"series"``, ``"seg"``, ``"tracking/3"``) in the job `key`.

    A version 5 UUID under the root 2.25 (PS3.5 B.2).
    """
    return f"2.25.{uuid.uuid5(NAMESPACE, f'{key}|{role}').int}"
