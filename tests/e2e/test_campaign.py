"""The campaigns of ``make campaign`` in their short form: every promise holds in every case."""

import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_every_promise_holds(repository):
    done = subprocess.run(
        [sys.executable, "-m", "tests.campaign", "--size", "short"], cwd=repository,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-1000:]}"
    assert "| promise | cases | held |" in done.stdout
