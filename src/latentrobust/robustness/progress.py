"""How far a long measurement is."""

from __future__ import annotations

import logging
import sys
import time

LOG = logging.getLogger(__name__)


class Progress:
    """Tells on standard error and in the log, now and then, how much is done and how long the rest will take.

    Args:
        total: of what is counted; None where nobody knows.
        what: is done to it, as the line says.
        shares: whether the line says a share instead of a count.
        title: of what is measured, with which lines begin; may be empty.
    """

    INTERVAL = 15.0

    def __init__(self, total: int | None, what: str = "certified", *, shares: bool = False, title: str = "") -> None:
        self.total, self.shares = total, shares
        self.what = f"{title}: {what}" if title else what
        self.finished = self.made = 0
        self.started = self.told = 0.0

    def skip(self, count: int) -> None:
        """So many were finished before; the clock starts with the first that is not."""
        self.finished += count
        self.started = self.started or time.monotonic()
        self.told = self.told or self.started

    def done(self, count: int) -> None:
        """So many more are finished now."""
        self.finished, self.made = self.finished + count, self.made + count
        now = time.monotonic()
        unknown = self.shares and not self.total
        if now - self.told < self.INTERVAL or self.finished == self.total or self.made < 1 or unknown:
            return
        line = f"{self.what} {self.finished}"
        if self.total is not None:
            left = (now - self.started) / self.made * (self.total - self.finished)
            minutes, seconds = divmod(round(left), 60)
            line = f"{self.what} {self.finished / self.total:.0%}" if self.shares else f"{line} of {self.total}"
            line += f", about {minutes}:{seconds:02d} left"
        print(line, file=sys.stderr)
        LOG.info(line)
        self.told = now
