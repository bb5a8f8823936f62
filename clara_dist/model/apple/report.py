"""Where every tensor of a conversion went: nothing is dropped in silence."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import Tensor


@dataclass(frozen=True)
class TensorPlace:
    """One tensor, and what became of it.

    Attributes:
        source: File and name that it was read from.
        shape: Its shape.
        dtype: Its type in the source.
        target: File and name that it, or the named rows of it, went to; or why it needs no place.
    """

    source: str
    shape: tuple[int, ...]
    dtype: str
    target: str

    def __str__(self) -> str:
        return f"{self.source}  {list(self.shape)} {self.dtype}  ->  {self.target}"


@dataclass
class Report:
    """What a conversion did.

    Attributes:
        source: What was read.
        target: What was written.
        tensors: Every tensor of the source.
        notes: What a user should know: settings that have no place in the other layout, defaults that were filled in.
    """

    source: str
    target: str
    tensors: list[TensorPlace] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, source: str, tensor: Tensor, target: str) -> None:
        """List one tensor."""
        dtype = str(tensor.dtype).removeprefix("torch.")
        self.tensors.append(TensorPlace(source, tuple(tensor.shape), dtype, target))

    def write(self, path: Path) -> None:
        """Save the whole of it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    def summary(self) -> str:
        """A few lines: tensors by the file that they went to, and the notes."""
        counts: dict[str, int] = {}
        for tensor in self.tensors:
            place = tensor.target.partition(":")[0]
            counts[place] = counts.get(place, 0) + 1
        lines = [f"{self.source} -> {self.target}: {len(self.tensors)} tensors"]
        lines += [f"  {count:5d}  {place}" for place, count in counts.items()]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)
