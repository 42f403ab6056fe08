"""Whether what is measured is gathered over a group of processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_ALONE: ContextVar[bool] = ContextVar("alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """What is measured inside is this process's own, also where there is a group of processes."""
    before = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(before)


def together() -> bool:
    """Whether values are gathered over processes."""
    return not _ALONE.get() and torch.distributed.is_available() and torch.distributed.is_initialized()
