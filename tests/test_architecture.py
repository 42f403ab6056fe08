"""The rules of the house that a machine can check."""

import ast
import os
import re
import subprocess
import sys

import pytest

# Rooms that a room may import from; its own files always.
ALLOWED = {
    "transforms": set(),
    "networks": {"transforms"},  # flows draw the noise that they are trained with
    "perturbation_sets": {"networks", "transforms"},
    "robustness": {"perturbation_sets", "transforms"},
    "data": {"transforms"},
    "learners": {"perturbation_sets", "networks", "transforms", "data", "run_folder"},
    "tasks": {"perturbation_sets", "robustness", "networks", "transforms", "data"},
    "benchmark": {"learners", "perturbation_sets", "robustness", "networks", "transforms", "data"},
    "sweeping": {"app", "values", "interrupts", "lock", "preflight", "refusals", "reporting", "run_folder", "stages"},
    "sharing": {"perturbation_sets", "robustness", "reporting", "run_folder"},
    "reporting": {"perturbation_sets", "robustness", "transforms", "data", "run_folder"},
}
EVERYWHERE = {
    "graphs",
    "arguments",
    "batch",
    "errors",
    "files",
    "interrupts",
    "keys",
    "lock",
    "modules",
    "remote",
    "schedules",
    "streams",
    "latentrobust",
}  # and the package's own version


def imported(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "latentrobust":
            yield from [node.module.split(".")[1]] if "." in node.module else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[-1] for alias in node.names if alias.name.startswith("latentrobust"))


@pytest.mark.parametrize("room", list(ALLOWED))
def test_imports_point_one_way(repository, room):
    files = list((repository / "src" / "latentrobust" / room).rglob("*.py"))
    assert files
    for file in files:
        assert set(imported(file)) <= ALLOWED[room] | EVERYWHERE | {room}, file


def test_every_room_is_checked(repository):
    rooms = {path.parent.name for path in (repository / "src" / "latentrobust").glob("*/__init__.py")}
    assert rooms == set(ALLOWED)


def test_the_library_does_without_hydra_wandb_and_lightning():
    """Only `learn` may need the training stack (and nothing torchmetrics, which imports matplotlib)."""
    code = (
        "import sys, latentrobust\n"
        "[getattr(latentrobust, name) for name in latentrobust.__all__ if name != 'learn']\n"
        "heavy = [m for m in ('hydra', 'wandb', 'pytorch_lightning', 'sklearn', 'matplotlib') if m in sys.modules]\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_what_does_not_compose_is_refused_before_pytorch_is_imported(command):
    """Whoever mistypes an override should not wait ten seconds to be told."""
    code = (
        f"import sys\nfrom latentrobust.{command} import main\nsys.argv = ['{command}', 'trainer.max_epoch=3']\n"
        "try:\n    main()\nexcept SystemExit as refused:\n"
        "    heavy = [m for m in ('torch', 'pytorch_lightning', 'scipy') if m in sys.modules]\n"
        "    assert refused.code == 2 and not heavy, (refused.code, heavy)\n"
        "else:\n    raise AssertionError('not refused')"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stderr
    assert "did you mean trainer.max_epochs?" in said


def test_every_module_can_be_the_first_that_is_imported(repository, tmp_path):
    """A circle of imports shows only to whoever enters it at the wrong place; the package itself always comes first."""
    code = (
        "import importlib, pathlib, sys, latentrobust\n"
        "always = {known for known in sys.modules if known.startswith('latentrobust')}\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "for path in sorted(root.rglob('*.py')):\n"
        "    name = '.'.join(path.relative_to(root).with_suffix('').parts).removesuffix('.__init__')\n"
        "    if not name.endswith('__main__'):\n"
        "        for known in [known for known in sys.modules if known.startswith('latentrobust')]:\n"
        "            if known not in always:\n"
        "                del sys.modules[known]\n"
        "        importlib.import_module(name)\n"
    )
    compiled = {
        **os.environ,
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": str(tmp_path),
    }  # once, not each time
    subprocess.run([sys.executable, "-c", code, str(repository / "src")], check=True, env=compiled)


def test_no_absolute_paths_of_a_machine_in_tracked_text(repository):
    pattern = re.compile(r"(?<![\w.])/(?:home|root|work|Users)/")
    for folder in ("src", "conf", "docs", "notebooks"):
        for file in (repository / folder).rglob("*"):
            if file.suffix in {".py", ".yaml", ".md", ".ipynb", ".j2"}:
                assert not pattern.search(file.read_text()), file
