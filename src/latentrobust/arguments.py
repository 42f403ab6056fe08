"""Arguments checked against the signature that takes them: types, and ranges where an annotation has one.

A range is written once, in the signature (``steps: Count``), and holds for Python callers (`validated`) and for
configurations (`check_values` in `latentrobust.values`) alike. A whole number may be written ``1e3`` wherever one is
expected.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import inspect
import math
import re
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np
import torch

from latentrobust.errors import InputError

C = TypeVar("C", bound=Callable[..., Any])


@dataclass(frozen=True)
class Range:
    """Which numbers are meant.

    Args:
        least: the smallest.
        most: the largest.
        above: whether ``least`` itself is left out.
    """

    least: float = -math.inf
    most: float = math.inf
    above: bool = False

    def holds(self, value: float) -> bool:
        """Whether a finite number is in it."""
        return (self.least < value if self.above else self.least <= value) and value <= self.most

    def __str__(self) -> str:
        low = "" if math.isinf(self.least) else f"{'above' if self.above else 'at least'} {_plain(self.least)}"
        high = "" if math.isinf(self.most) else f"at most {_plain(self.most)}"
        return " and ".join(part for part in (low, high) if part) or "finite"


def _plain(number: float) -> str:
    """A number as it may be typed: whole ones with all their digits."""
    return str(int(number)) if number == int(number) else f"{number:g}"


@dataclass(frozen=True)
class Pattern:
    """Which texts are meant.

    Args:
        expression: that the whole text matches.
        expected: what to say that it is.
    """

    expression: str
    expected: str


Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
Shape = Annotated[tuple[Count, ...], "of an image, (channels, height, width)"]
_NAMED = r"p25|p50|p75|p95|coverage=(0?\.\d+|1(\.0*)?)"
RadiusName = Annotated[str, Pattern(f"full|{_NAMED}", "one of full, p25, p50, p75, p95, coverage=<share>")]
RadiusRule = Annotated[str, Pattern(f"max|{_NAMED}", "one of max, p25, p50, p75, p95, coverage=<share>")]
Seed = Annotated[int, Range(0, 2**32 - 1)]
Positive = Annotated[float, Range(0, above=True)]
NonNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
PositiveShare = Annotated[float, Range(0, 1, above=True)]
Probability = PositiveShare
Severity = Annotated[int, Range(1, 5)]
Side = Annotated[int, Range(8, 4096)]
Level = Annotated[int, Range(0, 8)]
Level255 = Annotated[int, Range(0, 255)]


def check(value: Any, annotation: Any, name: str) -> Any:
    """The value, a whole number as an ``int`` where one is expected.

    Objects of this package's classes must be of them; others' classes may be stood in for by anything but numbers, text
    and containers.

    Raises:
        InputError: naming what was expected and what came.
    """
    found = _fits(value, annotation)
    if isinstance(found, _Misfit):
        raise InputError(f"{name} must be {found.expected}, got {_shown(value)}")
    return found


def maker_of(target: Callable[..., Any]) -> Callable[..., Any]:
    """What takes a callable's arguments: of a class the nearest ``__init__`` that names them, not passes them on."""
    if not inspect.isclass(target):
        return target
    for owner in target.__mro__:
        made = vars(owner).get("__init__")
        if made is not None and any(
            parameter.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
            for name, parameter in inspect.signature(made).parameters.items()
            if name != "self"
        ):
            return made
    return target.__init__


def hints_of(target: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a callable's parameters, or of what makes a class's instances; empty where nobody knows."""
    # Of a dataclass, each field's names are those of the module that declares it.
    described: Any = target if dataclasses.is_dataclass(target) else inspect.unwrap(maker_of(target))
    try:
        return get_type_hints(described, include_extras=True)
    except (NameError, TypeError, AttributeError):  # names that only type checkers import
        return {}


def validated(target: C) -> C:
    """A class or function whose arguments are checked against its signature when it is called.

    Raises:
        InputError: when called with what does not fit, naming the parameter.
    """
    function = target.__init__ if inspect.isclass(target) else target
    signature = inspect.signature(function)
    hints: dict[str, Any] | None = None  # found at the first call: names may be defined further down

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal hints
        if hints is None:
            hints = hints_of(target)
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            if name in hints and signature.parameters[name].kind not in (
                inspect.Parameter.VAR_POSITIONAL,
                inspect.Parameter.VAR_KEYWORD,
            ):
                bound.arguments[name] = check(value, hints[name], f"{target.__name__}: {name}")
        return function(*bound.args, **bound.kwargs)

    if inspect.isclass(target):
        setattr(target, "__init__", call)  # noqa: B010 - which type checkers refuse as an assignment
        return target
    return cast(C, call)


@dataclass(frozen=True)
class _Misfit:
    expected: str


def _fits(value: Any, annotation: Any) -> Any:  # noqa: PLR0911 - a case a kind of annotation
    """The value, converted, or what was expected instead."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _in_range(value, arguments[0], arguments[1:])
    if origin in (Union, types.UnionType):
        return _one_of(value, arguments)
    if origin is Literal:
        fits = any(value == choice and type(value) is type(choice) for choice in arguments)
        return value if fits else _Misfit(f"one of {', '.join(map(str, arguments))}")
    if annotation is None or annotation is type(None):
        return value if value is None else _Misfit("null")
    if annotation in _PLAIN:
        return _PLAIN[annotation](value)
    if origin in (list, Sequence, tuple, Collection, Mapping, dict):
        return _in_container(value, origin, arguments)
    return _instance(value, annotation if origin is None else origin)


def _bool(value: Any) -> Any:
    return bool(value) if isinstance(value, bool | np.bool_) else _Misfit("true or false")


def _int(value: Any) -> Any:
    """Whole numbers, also those of NumPy and PyTorch, and those that are written with an exponent."""
    if isinstance(value, torch.Tensor | np.generic | np.ndarray) and np.ndim(value) == 0:
        value = value.item()
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return int(value)
    return _Misfit("a whole number")


def _float(value: Any) -> Any:
    if isinstance(value, torch.Tensor | np.generic | np.ndarray) and np.ndim(value) == 0:
        value = value.item()
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if fits else _Misfit("a finite number")


def _str(value: Any) -> Any:
    return value if isinstance(value, str) else _Misfit("text")


def _path(value: Any) -> Any:
    return value if isinstance(value, str | Path) else _Misfit("a path")


_PLAIN: dict[Any, Callable[[Any], Any]] = {bool: _bool, int: _int, float: _float, str: _str, Path: _path}


def _instance(value: Any, annotation: Any) -> Any:
    """An object of a class, or something to be called: numbers, text and lists are neither."""
    if annotation is Callable or annotation is collections.abc.Callable:
        return value if callable(value) else _Misfit("something that can be called")
    if not inspect.isclass(annotation) or annotation in (Any, object, type):
        return value
    protocol = getattr(annotation, "_is_protocol", False)
    ours = annotation.__module__.startswith("latentrobust.") and not protocol  # others' may be stood in for
    if not ours and not isinstance(value, bool | int | float | str | bytes | list | dict | types.NoneType):
        return value
    return value if not protocol and isinstance(value, annotation) else _Misfit(f"a {annotation.__name__}")


def _in_range(value: Any, annotation: Any, limits: Sequence[Any]) -> Any:
    found = _fits(value, annotation)
    for limit in limits:
        if isinstance(limit, Pattern) and (isinstance(found, _Misfit) or re.fullmatch(limit.expression, found) is None):
            return _Misfit(limit.expected)
        if isinstance(limit, Range):
            noun = {int: "a whole number", float: "a number"}.get(annotation, "a number")
            if isinstance(found, _Misfit) or not limit.holds(found):
                return _Misfit(f"{noun} {limit}")
    return found


def _one_of(value: Any, choices: Sequence[Any]) -> Any:
    found = [_fits(value, choice) for choice in choices]
    fitting = [each for each in found if not isinstance(each, _Misfit)]
    if not fitting:
        return _Misfit(" or ".join(dict.fromkeys(each.expected for each in found)))
    # As what it is, where that is among the choices: 1.0 stays a share where 1 would be a count.
    return next((each for each in fitting if type(each) is type(value)), fitting[0])


def _in_container(value: Any, origin: Any, arguments: Sequence[Any]) -> Any:
    if origin in (Mapping, dict):
        if not isinstance(value, Mapping):
            return _Misfit("a mapping")
        parts = {key: _fits(part, arguments[1]) if len(arguments) == 2 else part for key, part in value.items()}
        bad = next(((key, part) for key, part in parts.items() if isinstance(part, _Misfit)), None)
        return _Misfit(f"a mapping with {bad[0]} {bad[1].expected}") if bad else (parts if parts != value else value)
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Collection):
        return _Misfit("a list")
    every = list(value)
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        if len(every) != len(arguments):
            return _Misfit(f"a list of {len(arguments)}")
        kinds = list(arguments)
    else:
        kinds = [arguments[0] if arguments else Any] * len(every)
    items = [_fits(part, kind) for part, kind in zip(every, kinds, strict=True)]
    bad = next(((place, part) for place, part in enumerate(items) if isinstance(part, _Misfit)), None)
    if bad:
        return _Misfit(f"a list whose entry {bad[0]} is {bad[1].expected}")
    same = all(a is b for a, b in zip(items, every, strict=True))
    return value if same else (tuple(items) if isinstance(value, tuple) else items)


def _shown(value: Any) -> str:
    text = repr(value) if not isinstance(value, torch.Tensor) else f"a tensor of shape {list(value.shape)}"
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}…"
