"""Published data sets as files of CLaRa's own rows."""

from __future__ import annotations

import json
import os
from pathlib import Path

from clara_dist.config.training import DataFormat
from clara_dist.data.documents import BadRow
from clara_dist.data.examples import joint_row
from clara_dist.data.json_lines import row_error
from clara_dist.data.layouts import clara_row
from clara_dist.data.rows import iter_rows


def convert(source: str, output: str, layout: DataFormat = "auto") -> tuple[int, int]:
    """Write a data set as JSON lines that are corpus, training rows and questions at once, one row at a time.

    The corpus reader (format ``clara``) makes a document of every entry of ``docs``, named by its text; the training
    stages and the evaluation name their candidates so, too. Questions that cannot be answered stay, for their
    paragraphs; the other readers leave them out.

    Args:
        source: See `iter_rows`.
        output: The file; it appears when it is complete.
        layout: See `clara_row`.

    Returns:
        How many rows there are, and how many of them cannot be answered.

    Raises:
        DataError: The data cannot be read, or a row is bad; names place and reason.
    """
    n_rows = n_unanswerable = 0
    staging = Path(f"{output}.part")
    try:
        staging.parent.mkdir(parents=True, exist_ok=True)
        with open(staging, "w", encoding="utf-8") as file:
            for place, row in iter_rows(source):
                try:
                    own = clara_row(row, layout)
                    answerable = own.get("answerable") is not False
                    if answerable and own is not row:
                        joint_row(own)
                except BadRow as bad:
                    raise row_error(place, bad) from None
                file.write(json.dumps(own, ensure_ascii=False) + "\n")
                n_rows, n_unanswerable = n_rows + 1, n_unanswerable + (not answerable)
        os.replace(staging, output)
    finally:
        staging.unlink(missing_ok=True)
    return n_rows, n_unanswerable
