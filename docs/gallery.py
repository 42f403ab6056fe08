"""Run the commands of ``docs/gallery.md`` and renew its pictures from the figures of their runs: ``make gallery``.

A picture ``images/gallery/RUN-FIGURE.png`` on the page is ``figures/FIGURE.png`` of the run ``name=gallery/RUN``. Takes
about an hour on two CPU cores, and reads MNIST and Fashion-MNIST from ``LATENTROBUST_DATA``.
"""

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from check import commands

HERE = Path(__file__).resolve().parent
PAGE = HERE / "gallery.md"
PICTURE = re.compile(r"\((images/gallery/([\w]+)-([\w]+)\.png)\)")


def pictures(text):
    """Of a page: where each picture lies, and which figure of which run it is."""
    return PICTURE.findall(text)


def main():
    """The command line."""
    parser = argparse.ArgumentParser(prog="docs/gallery.py", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="to run in; finished runs are not run again")
    folder = parser.parse_args().folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    page = PAGE.read_text()
    for line in commands(page):
        (name,) = re.findall(r"name=(gallery/\w+)", line)
        if not (folder / "outputs" / name / "latest" / "DONE").is_file():
            print(line, flush=True)
            subprocess.run([sys.executable, *shlex.split(line)[1:]], cwd=folder, check=True)
    for place, run, figure in pictures(page):
        (HERE / place).parent.mkdir(exist_ok=True)
        shutil.copyfile(folder / "outputs" / "gallery" / run / "latest" / "figures" / f"{figure}.png", HERE / place)


if __name__ == "__main__":
    main()
