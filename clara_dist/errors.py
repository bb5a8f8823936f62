"""The package's one exception tree.

Every message says what is wrong, what was got, what was expected and what to do. Errors cross process boundaries (Ray
tasks, actors, Serve replicas), so every class pickles without loss: the constructor's arguments are the state.
"""

from __future__ import annotations

from typing import Any


class ClaraError(Exception):
    """Base of all errors that clara_dist raises on purpose.

    Args:
        what: What is wrong, in one sentence.
        got: What was found, if it helps.
        expected: What would have been right, if it helps.
        hint: What the reader can do about it.
    """

    def __init__(self, what: str, *, got: Any = None, expected: Any = None, hint: str | None = None) -> None:
        self.what = what
        # Kept as text: the value itself may be large, or may not pickle.
        self.got = None if got is None else str(got)
        self.expected = None if expected is None else str(expected)
        self.hint = hint
        super().__init__(what)

    def __str__(self) -> str:
        parts = [self.what]
        if self.got is not None:
            parts.append(f"got: {self.got}")
        if self.expected is not None:
            parts.append(f"expected: {self.expected}")
        if self.hint is not None:
            parts.append(f"to do: {self.hint}")
        return "\n  ".join(parts)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.what, self.got, self.expected, self.hint)


def _rebuild(cls: type[ClaraError], what: str, got: str | None, expected: str | None, hint: str | None) -> ClaraError:
    return cls(what, got=got, expected=expected, hint=hint)


class ConfigError(ClaraError):
    """A configuration file, an override or a flag is wrong."""


class ModelError(ClaraError):
    """A model directory, an adapter or a base LLM is not what it should be."""


class CheckpointError(ModelError):
    """A training checkpoint or an imported checkpoint is missing, damaged or of another run."""


class TokenizationError(ClaraError):
    """A text does not fit: an over-long question, or a prompt that leaves no room for its answer."""


class SelectionError(ClaraError):
    """Scores, masks, candidates or k do not fit together."""


class DataError(ClaraError):
    """A corpus or a file of examples cannot be used, or too many of its rows were rejected."""


class StoreError(ClaraError):
    """A memory store is missing, incomplete or used wrongly."""


class StorageError(StoreError):
    """An object store does not answer, or refuses."""


class CorruptStoreError(StoreError):
    """Bytes of a memory store are not what its manifest says."""


class FingerprintMismatchError(StoreError):
    """A model met a store that another model wrote; the message names the fields that differ."""


class CommitConflictError(StoreError):
    """Another writer committed the same store version first."""


class FilterError(StoreError):
    """A filter cannot be read, or does not fit the store's metadata columns; says which, and where in its text."""


class RetrievalError(ClaraError):
    """A search cannot be answered as asked."""


class TrainingError(ClaraError):
    """A training run cannot go on: nothing trainable, a non-finite loss, no answer tokens."""


class EchoedError(TrainingError):
    """Another worker of the run has the error; this one only ends with it."""


class ClusterError(ClaraError):
    """The Ray cluster lacks what the job needs, or a worker failed beyond its retries."""


class SynthesisError(ClaraError):
    """The endpoint gave no usable answer for one document."""


class EndpointError(SynthesisError):
    """The endpoint would refuse every document: a wrong key, an unknown model, a used-up quota. It ends the job."""


class RequestError(ClaraError):
    """A client's request cannot be served.

    ``status`` is the HTTP status that the ingress answers with.
    """

    status = 400


class OverloadedError(RequestError):
    """The server is full; the client should try again later."""

    status = 429


class ConflictError(RequestError):
    """The request contradicts what is stored."""

    status = 409


class UnavailableError(RequestError):
    """A part of the server is lost and is being replaced; the client should try again later."""

    status = 503
