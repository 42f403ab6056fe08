"""The examples in public docstrings do what they say."""

import doctest
import inspect
import tempfile

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


def test_what_is_public_is_documented_and_short():
    assert dir(lr) == sorted(lr.__all__)
    assert len(dir(lr)) < 40
    assert {name for name, value in PUBLIC.items() if not inspect.getdoc(value)} == set()
    assert set(EXAMPLES) == set(PUBLIC)
