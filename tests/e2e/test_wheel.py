"""The wheel carries the configuration and works from another folder."""

import os
import subprocess
import sys
import zipfile

import pytest

from ..conftest import SMALL


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    repository = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    build = ["-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), repository]
    subprocess.run([sys.executable, *build], check=True, capture_output=True, text=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_code_configuration_template_and_typing_mark(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("conf/train.yaml", "conf/experiment/mnist/rts.yaml", "py.typed", "reporting/report.html.j2"):
        assert f"latentrobust/{name}" in names
    assert not [name for name in names if name.startswith(("tests", "notebooks", "conf/"))]


def test_the_wheel_trains_from_another_folder(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel)], check=True
    )
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    where = "import latentrobust, latentrobust.configuration as a; print(latentrobust.__file__, a.CONF)"
    shown = subprocess.run(
        [sys.executable, "-c", where], cwd=elsewhere, env=environment, check=True, capture_output=True, text=True
    ).stdout.split()
    assert all(path.startswith(str(site)) for path in shown)
    done = subprocess.run(
        [sys.executable, "-m", "latentrobust.train", *SMALL, "trainer.limit_train_batches=2", "data.test_size=8",
         "report=true"],
        cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list(elsewhere.glob("outputs/digits/linf_fc/20*/DONE"))) == 1


def test_console_scripts_are_installed():
    scripts = os.path.dirname(sys.executable)
    for name in ("train", "evaluate"):
        done = subprocess.run(
            [os.path.join(scripts, f"latentrobust-{name}"), "--help"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0
        assert "experiment" in done.stdout
