"""Run every percent script of this folder and save it as a notebook with its pictures: ``make notebooks``."""

from pathlib import Path

import jupytext
import nbclient
import nbformat


def main() -> None:
    """Execute and write."""
    for script in sorted(Path(__file__).parent.glob("[0-9]*.py")):
        notebook = jupytext.read(script)
        nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # times of this run
        nbformat.write(notebook, script.with_suffix(".ipynb"))
        print(script.with_suffix(".ipynb").name)


if __name__ == "__main__":
    main()
