"""The examples in public docstrings do what they say."""

import doctest
import importlib
import importlib.util
import inspect
import re
import tempfile
from pathlib import Path

import pytest

import latentrobust as lr

PUBLIC = {name: getattr(lr, name) for name in lr.__all__ if name != "__version__"}
EXAMPLES = [name for name, value in PUBLIC.items() if ">>>" in (inspect.getdoc(value) or "")]


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # what it makes is not for keeping
    value = PUBLIC[name]
    module = inspect.getmodule(inspect.unwrap(value))
    (test,) = (
        found
        for found in doctest.DocTestFinder(recurse=False).find(value, name, module=module, globs=vars(module).copy())
        if found.examples
    )
    said = []
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append)
    assert result.attempted > 0
    assert not result.failed, "".join(said)


@pytest.mark.parametrize("room", ["learners", "perturbation_sets", "robustness", "sharing", "tasks", "transforms"])
def test_a_room_gives_its_public_names(room):
    """In any order: a name that is also a file's would be one or the other."""
    package = importlib.import_module(f"latentrobust.{room}")
    assert set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        assert getattr(package, name).__name__ == name
        assert inspect.getdoc(getattr(package, name))
        assert importlib.util.find_spec(f"latentrobust.{room}.{name}") is None
    with pytest.raises(AttributeError):
        package.nothing


def test_examples_are_code_where_the_site_shows_them():
    """Under ``Example:`` it makes quotations of them, with all lines run together."""
    written = [(path, path.read_text()) for path in Path(lr.__file__).parent.rglob("*.py")]
    assert [path for path, text in written if re.search(r"^ *Example:$", text, re.MULTILINE)] == []


def test_what_is_public_is_documented_and_short():
    assert dir(lr) == sorted(lr.__all__)
    assert len(dir(lr)) < 40
    assert {name for name, value in PUBLIC.items() if not inspect.getdoc(value)} == set()
    assert set(EXAMPLES) == set(PUBLIC)
