import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

from latentrobust.arguments import Count, Natural, Positive, Range, Seed, Share, check, hints_of, validated
from latentrobust.errors import InputError


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (1e3, int, 1000),
        (np.int64(3), Count, 3),
        (torch.tensor(2), Natural, 2),
        (3, Positive, 3),
        (None, Count | None, None),
        (0.5, Count | Share, 0.5),
        (1.0, Count | Share, 1.0),
        (1, Count | Share, 1),
        ([1, 2.0], Sequence[int], [1, 2]),
        ((1, 28, 28), tuple[Count, ...], (1, 28, 28)),
        ({"a": 1e2}, Mapping[str, int], {"a": 100}),
        ("l2", Literal["l2", "linf"], "l2"),
        (math.sqrt, Callable[[float], float], math.sqrt),
        ("anything", Any, "anything"),
    ],
)
def test_what_fits_is_taken(value, annotation, expected):
    found = check(value, annotation, "x")
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "annotation", "message"),
    [
        (2.5, Count, "x must be a whole number at least 1, got 2.5"),
        (0, Count, "at least 1, got 0"),
        (True, int, "a whole number, got True"),
        ("3", int, "a whole number, got '3'"),
        (math.nan, float, "a finite number, got nan"),
        (math.inf, Positive, "a number above 0, got inf"),
        (0.0, Positive, "above 0, got 0.0"),
        (7, Annotated[int, Range(1, 5)], "at least 1 and at most 5, got 7"),
        (1, bool, "true or false, got 1"),
        (1, str, "text, got 1"),
        ("l3", Literal["l2", "linf"], "one of l2, linf, got 'l3'"),
        ("abc", Sequence[str], "a list, got 'abc'"),
        ([1, "b"], Sequence[int], "a list whose entry 1 is a whole number"),
        ([1, 2, 3], tuple[float, float], "a list of 2, got"),
        ({"a": "b"}, Mapping[str, int], "a mapping with a a whole number"),
        (3, nn.Module, "a Module, got 3"),
        (None, Callable[[int], int], "something that can be called, got None"),
        (1.5, Count | None, "a whole number at least 1 or null, got 1.5"),
        ("x" * 500, int, "a whole number, got 'xxx"),
        (2**32, Seed, "at least 0 and at most 4294967295, got"),
    ],
)
def test_what_does_not_fit_is_named(value, annotation, message):
    with pytest.raises(InputError) as error:
        check(value, annotation, "x")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


@validated
@dataclass(frozen=True)
class Settings:
    steps: Count = 3
    names: Sequence[str] = field(default_factory=list)


@validated
class Parent:
    def __init__(self, size: Count, module: nn.Module | None = None) -> None:
        self.size = size


class Child(Parent):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


def test_calls_are_checked():
    assert Settings(steps=1e1).steps == 10
    with pytest.raises(InputError, match=r"^Settings: steps must be a whole number at least 1, got 0$"):
        Settings(steps=0)
    assert Child(4.0).size == 4
    with pytest.raises(InputError, match="Parent: size must be"):
        Child(size="big")
    with pytest.raises(TypeError, match="unexpected"):
        Settings(stepps=1)


def test_annotations_are_those_of_who_names_the_arguments():
    assert set(hints_of(Child)) >= {"size", "module"}
    assert "steps" in hints_of(Settings)
