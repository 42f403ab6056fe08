"""What users are told: the one exception that means their input is wrong, and warnings about figures.

Warnings belong to the results that they are about: whoever measures collects them with `collecting` and stores them
beside the figures.
"""

from __future__ import annotations

import re
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


def one_line(message: object) -> str:
    """A message as one line, without the passwords of addresses in it, and without advice to load files unsafely."""
    line = " ".join(str(message).split())
    line = re.sub(r"(\w+://)[^/\s@]*:[^/\s@]*@", r"\1…@", line)
    if "weights_only" in line:  # what PyTorch says of any file that it cannot read
        line = "it is damaged, or asks for more than numbers"
    return line


def in_short(message: object, length: int = 200) -> str:
    """`one_line`, cut between words where it is longer than ``length`` characters: what other programs have to say."""
    return textwrap.shorten(one_line(message), length, placeholder=" …")


class HopelessError(RuntimeError):
    """A training that cannot succeed any more. The message says all there is to know; entry points exit with 1."""


class InputError(ValueError):
    """Bad input. The message is one line: what is wrong, where, and what to do. Entry points exit with 2.

    Examples:
        >>> import latentrobust as lr
        >>> try:
        ...     lr.PixelBall((1, 28, 28), radius=-1.0)
        ... except lr.InputError as error:
        ...     print(error)
        PixelBall: radius must be a number above 0, got -1.0
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(message))


class RobustnessWarning(UserWarning):
    """A figure is computed, but it may be too good."""


_collectors: ContextVar[tuple[list[str], ...]] = ContextVar("_collectors", default=())


@contextmanager
def collecting(*, inherit: bool = True) -> Iterator[list[str]]:
    """A list of the messages that `warn` gives inside, each once, whether or not Python shows them.

    Args:
        inherit: whether collectors outside get them too.
    """
    found: list[str] = []
    token = _collectors.set((*(_collectors.get() if inherit else ()), found))
    try:
        yield found
    finally:
        _collectors.reset(token)


def note(message: str) -> None:
    """Put a message into every collector, without a Python warning."""
    for found in _collectors.get():
        if message not in found:
            found.append(message)


def warn(message: str, stacklevel: int = 2) -> None:
    """Give a `RobustnessWarning`, and note it in every collector."""
    note(message)
    warnings.warn(message, RobustnessWarning, stacklevel=stacklevel + 1)
