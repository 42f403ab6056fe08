"""Bad input: which errors are the user's to mend, the line that says so, and no folder left behind."""

from __future__ import annotations

import errno
import re
import shlex
import sys
from contextlib import suppress
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from latentrobust.errors import InputError, one_line
from latentrobust.files import FULL, disk_of, quoted
from latentrobust.lock import FAILED
from latentrobust.run_folder import APP_LOG, CONFIG, NAMED_BY_TIME, writes

_DISK = (
    errno.ENOENT,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EISDIR,
)


def is_bad_input(error: BaseException) -> bool:
    """Whether an exception is the user's to mend: their values, files, overrides or folders."""
    if isinstance(error, InputError | InstantiationException | HydraException | OmegaConfBaseException):
        return True
    lightning = sys.modules.get("lightning_fabric.utilities.exceptions")  # imported where it has raised anything
    if lightning is not None and isinstance(error, lightning.MisconfigurationException):
        return True
    return isinstance(error, OSError) and error.errno in _DISK


def describe_error(error: BaseException) -> str:
    """An exception as one line, with its cause where that says more."""
    cause = error.__cause__
    if isinstance(error, OmegaConfBaseException) and isinstance(cause, InputError):  # of an interpolation
        error = cause
    if isinstance(error, InputError):
        return one_line(error)
    if isinstance(error, OverrideParseException) and "=" in (error.override or ""):
        return _quoting(error.override, one_line(error))
    if isinstance(error, OmegaConfBaseException) and (said := _not_there(one_line(error))):
        return said
    if isinstance(error, InstantiationException) and cause is not None:
        key = next((line for line in str(error).splitlines() if line.startswith("full_key")), "").partition(": ")[2]
        return one_line(f"{cause} {f'(in {key})' if key else ''}")
    if isinstance(error, OSError) and error.errno in _DISK and error.filename:
        disk = f" ({disk_of(Path(error.filename))})" if error.errno in FULL else ""
        return f"cannot use {error.filename}: {error.strerror}{disk}"
    return one_line(f"{error}{f' {cause}' if isinstance(cause, OmegaConfBaseException) else ''}")


def _not_there(reason: str) -> str:
    """What to do about a key that is taken from one that is not there; empty where it is something else."""
    left_out = re.search(r"trying to access (\S+): node `\S+` is not a container.*?full_key: (\S+)", reason)
    if left_out is not None:
        return f"{left_out[2]} is taken from {left_out[1]}, which is left out here: give {left_out[2]}=…"
    lacks = re.search(r"Interpolation key '(\S+)' not found full_key: (\S+)", reason)
    if lacks is None:
        return ""
    option = lacks[2].partition("[")[0]  # a list is given as a whole
    return f"{option} is taken from {lacks[1]}, which these choices do not have: choose others, or give {option}=…"


def _quoting(override: str, reason: str) -> str:
    """What to do about an override that Hydra's grammar does not know: quote its value, where that helps."""
    key, _, value = override.partition("=")
    able = f"{key}={quoted(value)}"
    try:
        OverridesParser.create().parse_overrides([able])
    except HydraException:
        able = ""
    if not able or value.strip().startswith(("'", '"', "[", "{")):
        return f"cannot read {override} ({reason.partition(' See https')[0]})"
    in_shell = shlex.quote(able) if set(able) & set('$`"!\\') else f'"{able}"'  # the latter can be read
    return f"cannot read {override}: quote the value, {able} (in a shell {in_shell})"


def leave_nothing(folder: Path, named: bool) -> None:
    """Remove the folder that Hydra has made for a run that was refused before it made anything.

    And the folders above it that are empty then, up to where the command was given. In a folder that the user named,
    all but an empty log may be of an earlier run, and stays.

    Args:
        folder: of the run.
        named: whether the user named it, or a folder above it.
    """
    with suppress(OSError):  # what stays in the way, stays
        start = Path(HydraConfig.get().runtime.cwd).resolve()
        folder = folder.resolve()
        if not writes() or folder == start or start.is_relative_to(folder):
            return
        there = {path.name: path for path in folder.iterdir()}
        empty = {APP_LOG} if APP_LOG in there and not there[APP_LOG].stat().st_size else set()
        own = not named and NAMED_BY_TIME.fullmatch(folder.name) is not None
        if not set(there) <= ({APP_LOG, CONFIG, FAILED} if own else empty):
            return
        for path in there.values():
            path.unlink()
        folder.rmdir()
        if own and folder.is_relative_to(start):
            for parent in folder.parents[: len(folder.parts) - len(start.parts) - 1]:
                parent.rmdir()
