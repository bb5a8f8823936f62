"""From the files of a corpus to units of work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clara_dist.data.corpus.lines import LineRange, plan_lines, read_head
from clara_dist.data.corpus.sources import Source, find_sources
from clara_dist.data.corpus.tables import plan_table, table_fields
from clara_dist.data.corpus.texts import plan_texts
from clara_dist.data.corpus.units import CorpusUnit, RowFormat
from clara_dist.data.documents import CONTENT_ID, ID_FIELDS, TEXT_FIELDS, USUAL_FIELDS, FieldMap
from clara_dist.data.json_lines import DEFAULT_MAX_LINE_BYTES
from clara_dist.errors import DataError

if TYPE_CHECKING:
    from clara_dist.config.corpus import CorpusFormat

_SHOWN_FIELDS = 30


def plan_units(
    corpus: str | Path | Sequence[str | Path],
    *,
    format: CorpusFormat = "auto",
    fields: FieldMap = USUAL_FIELDS,
    rows_per_unit: int = 2048,
    bytes_per_unit: int = 256 << 20,
    max_line_bytes: int = DEFAULT_MAX_LINE_BYTES,
) -> list[CorpusUnit]:
    """Plan a corpus: the same corpus gives the same units, wherever it lies.

    Reads every file once, sequentially and with flat memory, to find the lines and to hash the content.

    Args:
        corpus: Files, glob patterns (sorted) or directories, on disk or as URLs; ``hf://datasets/ORG/NAME``. Documents
            keep this order. A file named twice is read once. Paths must mean the same on every machine that reads.
        format: ``auto`` goes by the file's name, and tells documents from CLaRa training rows by the first good row.
        fields: Where a row has a document's parts.
        rows_per_unit: Rows of one unit of work, at most.
        bytes_per_unit: The row that completes so many bytes ends a unit, too: bytes of the file, of tables those of
            the text, so that a unit of long documents stays small enough for a worker's memory.
        max_line_bytes: Longer lines are rejected unread. A long text within it is accepted; the tokenizer cuts it.

    Raises:
        DataError: Nothing matches; a file is missing, empty, unreadable or of no known format; or no row that was
            looked at has a field that ``fields`` names.
    """
    sizes = (rows_per_unit, bytes_per_unit, max_line_bytes)
    if min(sizes) < 1:
        raise DataError("rows_per_unit, bytes_per_unit and max_line_bytes must be positive", got=sizes)
    names = [corpus] if isinstance(corpus, (str, Path)) else list(corpus)
    sources = find_sources([str(name) for name in names], format)
    heads = [_read_head(source, format, fields, max_line_bytes) for source in sources]
    _require_fields(sources, heads, fields)
    units: list[CorpusUnit] = []
    for source, head in zip(sources, heads, strict=True):
        for part in _parts(source, head.format, fields, rows_per_unit, bytes_per_unit):
            units.append(
                CorpusUnit(
                    index=len(units),
                    path=source.path,
                    format=head.format,
                    start=part.start,
                    stop=part.stop,
                    first_line=part.first_line,
                    n_rows=part.n_lines,
                    digest=part.digest,
                    max_line_bytes=max_line_bytes,
                    fields=fields,
                    names=source.names[part.start : part.stop],
                )
            )
    return units


@dataclass(frozen=True)
class _Head:
    """How a source is read, and the fields that its first rows have; None where the user has no say in them."""

    format: RowFormat
    fields: frozenset[str] | None


def _read_head(source: Source, wanted: CorpusFormat, fields: FieldMap, max_line_bytes: int) -> _Head:
    if source.kind == "text":
        return _Head("text", None)
    if source.kind == "lines":
        head = read_head(source.path, fields, max_line_bytes)  # also finds that a file is empty
        row_format = head.format if wanted == "auto" else "clara" if wanted == "clara" else "jsonl"
        return _Head(row_format, None if row_format == "clara" else head.fields)
    row_format = "parquet" if source.kind == "parquet" else "arrow"
    columns = table_fields(source.path, row_format)
    for named, known in ((fields.doc_id, ID_FIELDS), (fields.text, TEXT_FIELDS)):
        if named is None and not columns.intersection(known):
            raise DataError(
                f"{source.path} has no column {', '.join(known[:-1])} or {known[-1]}",
                got=f"columns {', '.join(sorted(columns))}",
                hint="say which column it is: id_field (or none, for ids by content) and text_field",
            )
    return _Head(row_format, columns)


def _require_fields(sources: Sequence[Source], heads: Sequence[_Head], fields: FieldMap) -> None:
    """A field that the user named and that is nowhere would make a reject of every row, or silently nothing."""
    rows = [(source.path, head.fields) for source, head in zip(sources, heads, strict=True) if head.fields]
    anywhere = frozenset(name for _, found in rows for name in found)
    for path, found in rows:
        for name in (fields.doc_id, fields.text):
            if name is not None and name != CONTENT_ID and name not in found:
                raise _no_field(name, path, found)
    for name in (fields.title, *(path for _, path in fields.metadata)):
        if rows and name is not None and name not in anywhere:
            raise _no_field(name, "the corpus" if len(rows) > 1 else rows[0][0], anywhere)


def _no_field(name: str, where: str, found: frozenset[str]) -> DataError:
    shown = sorted(found)[:_SHOWN_FIELDS]
    more = f" and {len(found) - len(shown)} more" if len(found) > len(shown) else ""
    return DataError(
        f"the first rows of {where} have no field {name}",
        got=f"fields {', '.join(shown)}{more}",
        hint="correct the name; a dot leads into an object, as in page.title",
    )


def _parts(
    source: Source, row_format: RowFormat, fields: FieldMap, rows_per_unit: int, bytes_per_unit: int
) -> Iterable[LineRange]:
    if row_format in ("jsonl", "clara"):
        return plan_lines(source.path, rows_per_unit, bytes_per_unit)
    if row_format == "text":
        return plan_texts(source.path, source.names, rows_per_unit, bytes_per_unit)
    return plan_table(source.path, row_format, fields, rows_per_unit, bytes_per_unit)
