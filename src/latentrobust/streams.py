"""Standard output and error that no terminal, pipe or encoding can make a run fail by; how commands end."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from latentrobust.errors import InputError, RobustnessWarning, one_line

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
"""Exit codes."""


class _Surviving:
    """A text stream that goes on, unheard, when whoever listened has closed the pipe, or its disk is full."""

    def __init__(self, stream: Any, name: str) -> None:
        self._stream, self._name = stream, name

    def write(self, text: str) -> int:
        try:
            return int(self._stream.write(text))
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _drop(self, error: OSError) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        if self._name == "stdout" and not isinstance(error, BrokenPipeError):  # nobody has chosen not to listen
            print(f"latentrobust: what follows on {self._name} is lost: {error.strerror}", file=sys.stderr)


def prepare_streams() -> None:
    """Characters that a stream's encoding lacks become question marks; a closed pipe or a full disk ends nothing.

    A `RobustnessWarning` becomes a line on standard error: it is about a result, and no line of code helps to see that.
    """
    if getattr(warnings.showwarning, "func", None) is not _show:
        warnings.showwarning = partial(_show, warnings.showwarning)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or isinstance(stream, _Surviving):
            continue
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
        setattr(sys, name, _Surviving(stream, name))


def _show(otherwise: Callable[..., None], message: Warning | str, category: type[Warning], *rest: Any) -> None:
    if issubclass(category, RobustnessWarning) and sys.stderr is not None:
        print(f"warning: {message}", file=sys.stderr)
    else:
        otherwise(message, category, *rest)


@contextmanager
def speaking_as(name: str, after_interrupt: str = "") -> Iterator[None]:
    """A command's body: what it raises becomes a line on standard error and an exit code.

    Args:
        name: of the command.
        after_interrupt: what to say behind the word that it was interrupted.
    """
    prepare_streams()
    try:
        yield
    except KeyboardInterrupt as interrupt:
        print(f"latentrobust {name}: {str(interrupt) or 'interrupted'}{after_interrupt}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (InputError, OSError) as error:
        print(f"latentrobust {name}: {one_line(error)}", file=sys.stderr)
        sys.exit(BAD_INPUT)
