from __future__ import annotations

import io

from clara_dist.distributed.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_now_and_then_and_at_the_end() -> None:
    out, now = io.StringIO(), [0.0]
    progress = Progress("documents", 100, stream=out, every_s=5, clock=lambda: now[0])
    # 20 s of starting do not enter the rate: 60 documents in the 8 s after the first ten.
    for now[0], n in ((20.0, 10), (22.0, 15), (28.0, 45), (29.0, 30)):
        progress.add(n)
    assert out.getvalue().splitlines() == ["documents 10/100", "documents 70/100, 8/s", "documents 100/100, 10/s"]


def test_a_terminal_has_one_line_that_renews_itself() -> None:
    out, now = Terminal(), [0.0]
    progress = Progress("rows", 2, stream=out, clock=lambda: now[0])
    for now[0] in (1.0, 2.0):
        progress.add(1)
    assert out.getvalue() == "\r\x1b[Krows 1/2\r\x1b[Krows 2/2, 1/s\n"
