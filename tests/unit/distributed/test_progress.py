from __future__ import annotations

import io
import re

from clara_dist.distributed.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_now_and_then_and_at_the_end() -> None:
    out, now = io.StringIO(), [0.0]
    progress = Progress("documents", 100, stream=out, every_s=5, clock=lambda: now[0])
    progress.note(n_rejects=3)
    # 20 s of starting do not enter the rates: 60 documents and 6,000 tokens in the 8 s after the first ten.
    for now[0], n in ((20.0, 10), (22.0, 15), (28.0, 45), (29.0, 30)):
        progress.note(n_tokens=100 * n, size_bytes=1000 * n)
        progress.add(n)
    assert out.getvalue().splitlines() == [
        "documents 10/100, 10.0kB written, 3 rejects",
        "documents 70/100, 8/s, 0:00:04 left, 750 tokens/s, 70.0kB written, 3 rejects",
        "documents 100/100, 10/s, 1.00k tokens/s, 100kB written, 3 rejects",
    ]


def test_what_was_there_already_is_no_work() -> None:
    out, now = io.StringIO(), [0.0]
    progress = Progress("documents", 100, stream=out, every_s=0, clock=lambda: now[0])
    progress.skip(40)
    for now[0] in (10.0, 12.0):
        progress.add(10)
    progress.skip(20)
    assert progress.rate() == 5.0
    assert out.getvalue().splitlines()[-1] == "documents 80/100, 5/s, 0:00:04 left"


def test_a_terminal_has_one_bar_that_renews_itself() -> None:
    out, now = Terminal(), [0.0]
    progress = Progress("documents", 300, stream=out, clock=lambda: now[0])
    for now[0] in (60.0, 61.0, 62.0):
        progress.note(n_tokens=7000, size_bytes=2_000_000)
        progress.add(100)
    *_, last, end = re.split(r"[\r\n]", out.getvalue())
    assert end == ""
    # The minute before the first hundred is no part of the rate.
    assert re.search(r"documents: 100%.*300/300 \[00:02<00:00, (99|100)\.\d+/s, 7.00k tokens/s, 6.00MB written\]", last)
    assert "\n" not in out.getvalue()[:-1]
