"""The rules of the house that a machine can check."""

import ast
import re
import subprocess
import sys

import networkx
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
    "sweeping": {
        "again",
        "configuration",
        "explaining",
        "overrides",
        "values",
        "interrupts",
        "lock",
        "preflight",
        "refusals",
        "reporting",
        "run_folder",
        "variants",
    },
    "sharing": {"perturbation_sets", "robustness", "reporting", "run_folder"},
    "reporting": {"perturbation_sets", "robustness", "transforms", "data", "run_folder"},
}
EVERYWHERE = {
    "graphs",
    "arguments",
    "arrays",
    "batch",
    "errors",
    "files",
    "interrupts",
    "keys",
    "lock",
    "modules",
    "precision",
    "processes",
    "remote",
    "schedules",
    "seen",
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


@pytest.mark.parametrize(
    ("command", "given", "answer"),
    [
        ("train", "trainer.max_epoch=3", "did you mean trainer.max_epochs?"),
        ("evaluate", "trainer.max_epoch=3", "did you mean trainer.max_epochs?"),
        ("train", "+experiment=demo", "write experiment=demo, without +"),
        ("train", "--experiment=demo", "options are written experiment=demo, without dashes"),
    ],
)
def test_what_does_not_compose_is_refused_before_pytorch_is_imported(command, given, answer):
    """Whoever mistypes an override should not wait ten seconds to be told."""
    code = (
        f"import sys\nfrom latentrobust.{command} import main\nsys.argv = ['{command}', '{given}']\n"
        "try:\n    main()\nexcept SystemExit as refused:\n"
        "    heavy = [m for m in ('torch', 'pytorch_lightning', 'scipy') if m in sys.modules]\n"
        "    assert refused.code == 2 and not heavy, (refused.code, heavy)\n"
        "else:\n    raise AssertionError('not refused')"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stderr
    assert answer in said


def at_import(body):
    """The statements that import something when a module is imported, not when its functions are called."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.Try) or (isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.dump(node.test)):
            yield from at_import([*node.body, *node.orelse])


def imports_of(source):
    """A graph: from each module to those that importing it imports."""
    files = {}
    for path in source.rglob("*.py"):
        files[".".join(path.relative_to(source).with_suffix("").parts).removesuffix(".__init__")] = path
    graph = networkx.DiGraph()
    for name, path in files.items():
        asked = {name}
        for node in at_import(ast.parse(path.read_text()).body):
            if isinstance(node, ast.ImportFrom):
                asked |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            else:
                asked |= {alias.name for alias in node.names}
        for one in asked:  # and the packages that it lies in
            parts = one.split(".")
            there = {".".join(parts[:end]) for end in range(1, len(parts) + 1)} & set(files) - {name}
            graph.add_edges_from((name, other) for other in there)
    return graph


def test_every_module_can_be_the_first_that_is_imported(repository):
    """A circle of imports shows only to whoever enters it at the wrong place."""
    graph = imports_of(repository / "src")
    assert len(graph) > 200
    circles = [circle for circle in networkx.strongly_connected_components(graph) if len(circle) > 1]
    assert circles
    packages = []
    for circle in circles:  # of a package, which imports its own files: it comes first, whichever of them is asked for
        package = min(circle, key=len)
        assert {module.rpartition(".")[0] for module in circle - {package}} == {package}, sorted(circle)
        packages.append(package)
    code = (
        "import importlib, sys, latentrobust\n"
        "always = {known for known in sys.modules if known.startswith('latentrobust')}\n"
        "for name in sys.argv[1:]:\n"
        "    for known in [known for known in sys.modules if known.startswith('latentrobust')]:\n"
        "        if known not in always:\n"
        "            del sys.modules[known]\n"
        "    importlib.import_module(name)\n"
    )
    subprocess.run([sys.executable, "-c", code, *packages], check=True)


def test_no_absolute_paths_of_a_machine_in_tracked_text(repository):
    pattern = re.compile(r"(?<![\w.])/(?:home|root|work|Users)/")
    for folder in ("src", "conf", "docs", "notebooks"):
        for file in (repository / folder).rglob("*"):
            if file.suffix in {".py", ".yaml", ".md", ".ipynb", ".j2"}:
                assert not pattern.search(file.read_text()), file
