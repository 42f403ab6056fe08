"""Notebooks run from top to bottom in a real kernel, and the two formats say the same."""

import time

import jupytext
import nbclient
import nbformat
import pytest

# And how many pictures they show.
NAMES = {"01_learn_a_perturbation_set": 4, "02_train_and_certify": 3, "03_your_own_pairs": 4}


@pytest.mark.parametrize("name", list(NAMES))
def test_script_and_notebook_hold_the_same_cells(repository, name):
    script = jupytext.read(repository / "notebooks" / f"{name}.py")
    notebook = nbformat.read(repository / "notebooks" / f"{name}.ipynb", as_version=4)
    assert [(c.cell_type, c.source) for c in script.cells] == [(c.cell_type, c.source) for c in notebook.cells]
    pictures = [
        o for c in notebook.cells if c.cell_type == "code" for o in c.outputs if "image/png" in o.get("data", {})
    ]
    assert len(pictures) >= NAMES[name]


# What takes long in them, and what the suite runs in its place; their pictures were made with the first.
SHORTER = {
    "01_learn_a_perturbation_set": {"trainer.max_epochs=16": "trainer.max_epochs=4"},
    "02_train_and_certify": {
        'first_pairs("test", 96)': 'first_pairs("test", 24)', "epochs=12": "epochs=2",
        "PGD(steps=20, relative_step=0.2, restarts=2)": "PGD(steps=6, relative_step=0.4)",
        "steps=20, restarts=2, draws=20": "steps=5, restarts=1, draws=5",
        "[:48]": "[:8]", "examples=32": "examples=4",
    },
    "03_your_own_pairs": {
        "train=90": "train=60", "    epochs=10,": "    epochs=4,", "range(10)": "range(4)",
        "PGD(steps=20, relative_step=0.1)": "PGD(steps=6, relative_step=0.4)",
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", list(NAMES))
def test_notebook_runs(repository, tmp_path, name):
    notebook = jupytext.read(repository / "notebooks" / f"{name}.py")
    for long, short in SHORTER[name].items():
        (cell,) = (cell for cell in notebook.cells if cell.cell_type == "code" and long in cell.source)
        cell.source = cell.source.replace(long, short)
    started = time.perf_counter()
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    print(f"{name}: {time.perf_counter() - started:.0f} s")
    assert list(tmp_path.iterdir()) == []  # everything goes where the notebook says
