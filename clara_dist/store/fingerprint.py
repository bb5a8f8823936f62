"""Which model wrote a store: memories of one model mean nothing to another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from clara_dist.errors import FingerprintMismatchError


@dataclass(frozen=True)
class Fingerprint:
    """Everything that decides a document's memory, by name: ``base``, ``compressor``, ``tokenizer``, ...

    The values are content hashes or plain settings. Named fields, rather than one hash, let a refusal say what differs.
    """

    fields: Mapping[str, str]

    @property
    def digest(self) -> str:
        """SHA-256 over all fields, in hexadecimal."""
        return hashlib.sha256(json.dumps(dict(self.fields), sort_keys=True).encode()).hexdigest()

    def require_match(self, other: Fingerprint, what_a: str, what_b: str) -> None:
        """Refuse ``other`` unless it is equal.

        Args:
            other: The fingerprint to compare with.
            what_a: What this fingerprint belongs to, for the message, such as ``"the store STORE"``.
            what_b: What ``other`` belongs to.

        Raises:
            FingerprintMismatchError: Naming every field that differs, with both values.
        """
        names = sorted(set(self.fields) | set(other.fields))
        differing = [name for name in names if self.fields.get(name) != other.fields.get(name)]
        if not differing:
            return

        def values(fingerprint: Fingerprint) -> str:
            return ", ".join(f"{name} = {fingerprint.fields.get(name, '(absent)')}" for name in differing)

        raise FingerprintMismatchError(
            f"{what_a} and {what_b} do not belong together; they differ in: {', '.join(differing)}",
            got=f"{what_b}: {values(other)}",
            expected=f"{what_a}: {values(self)}",
            hint="use the model that wrote the store, or compress the corpus again with this model",
        )
