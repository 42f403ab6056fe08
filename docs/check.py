"""Run every command of README and the guides, shortened, in an empty folder: ``make docs-check``.

Pages are followed as a reader would, from top to bottom, in one folder with somebody's images, model and scenes. What
takes long is made short by overrides of what a command composes to; what needs a GPU, Slurm, a network or an account is
named and left out. Data that is read from a root (``LATENTROBUST_DATA``) and is not there is named too.

Exits with 1 where a command fails.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from PIL import Image, ImageDraw

from latentrobust import save_model
from latentrobust.again import expanded
from latentrobust.configuration import CONF
from latentrobust.networks.classifiers import build
from latentrobust.overrides import composed
from latentrobust.run_folder import flat

ROOT = Path(__file__).resolve().parents[1]
# In an order in which what a page needs of another one is there.
GUIDES = (
    "training", "attacks", "own_pairs", "flows", "corruptions", "lights", "cluster", "dashboards", "sharing",
    "gallery", "commands",
)  # fmt: skip
PAGES = ("README.md", *(f"docs/{name}.md" for name in GUIDES))
LEFT_OUT = {
    r"trainer=gpu": "needs a GPU",
    r"submitit_slurm": "needs Slurm",
    r"share push|hub:|data fetch|downloads/": "needs a network or an account",
    r"dashboard ENTITY/PROJECT( --models.*)?$": "needs a network or an account",
    r"best\.pt |checkpoint_best\.pth my_": "needs a checkpoint of the papers' authors",
}
DEMO = "python -m latentrobust.train experiment=demo paths.output_dir=outputs/demo/latest"  # what make demo runs
# Keys of what is composed, and the most that they may be.
SHORT = {
    r"(models\.\w+\.)?trainer\.max_epochs": 2,
    r"trainer\.limit_(train|val)_batches": 2,
    r"trainer\.check_val_every_n_epoch": 1,
    r"data\.test_size": 16,
    r"data\.train_size": 100,
    r"data\.source\.train": 300,
    r"data\.source\.test": 40,
    r"(models\.\w+\.)?task\.attack_examples": 4,
    r"(models\.\w+\.)?task\.attack_every_n_epochs": 1,
    r".*validation_attack\..*(steps|draws|refinements)": 2,
    r"evaluation\.quality\..*(steps|draws|likelihood_draws|detail)": 2,
    r"evaluation\.quality\.coverage\.pairs": 16,
    r"evaluation\.robust\.examples": 4,
    r"evaluation\.robust\.attacks\..*(steps|draws|refinements|targets|restarts)": 2,
    r"evaluation\.certify\.(examples|attack_steps)": 2,
    r"evaluation\.certify\.n": 200,
    r"evaluation\.certify\.n0": 10,
}


def commands(text):
    """Command lines of code blocks, whole, without their comments."""
    for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL):
        lines = re.sub(r"\\\n\s*", " ", block).splitlines()
        bare = (re.sub(r"(?:^|\s)#.*", "", line).strip() for line in lines)
        told = (DEMO if line == "make demo" else line for line in bare)
        yield from (line.replace("…", "latest") for line in told if line.startswith("python -m latentrobust"))


def shortened(entry, arguments):
    """Overrides that make a run short: of what its command line composes to, where that is longer."""
    given = [argument for argument in arguments if argument != "-m" and not argument.startswith(("hydra", "--"))]
    given = expanded(given) if entry == "evaluate" else given
    one = [a if a.count("[") or "launcher" in a else re.sub(r"=([^,\[']+),.*", r"=\1", a) for a in given]
    chosen = swept(one)
    one = [argument for argument in one if not argument.startswith("+sweep=")] + chosen
    made = composed(entry, one)
    # Of somebody's own pairs there are few groups anyway.
    there = {key: most for key, most in SHORT.items() if "test_size" not in key or "root" not in made.data}
    found = [line for line in chosen if not line.startswith("method")]
    for key, value in flat(OmegaConf.to_container(made, resolve=False)):
        for pattern, most in there.items():
            if value is None:  # of a test set: all of it
                is_longer = "test_size" in key
            else:  # a limit of 1.0 is a share: all batches
                is_longer = isinstance(value, float) and (value > most or "limit_" in key)
            if re.fullmatch(pattern, key) and is_longer:
                found.append(f"{key}={most}")
    return found


def swept(arguments):
    """The first value of everything that a sweep's file varies."""
    names = [argument.partition("=")[2] for argument in arguments if argument.startswith("+sweep=")]
    files = (OmegaConf.load(CONF / "sweep" / f"{name}.yaml") for name in names)
    return [f"{key}={str(text).split(',')[0]}" for file in files for key, text in file.hydra.sweeper.params.items()]


def prepare(folder):
    """What the pages take for granted: images in groups, faces, scenes, a model, and a plan of a search."""
    chance = np.random.default_rng(0)
    for label, number in ((label, number) for label in ("ball", "box", "mug") for number in range(8)):
        left, top = chance.integers(3, 12, 2).tolist()
        image = Image.new("RGB", (32, 32), tuple(chance.integers(120, 256, 3).tolist()))
        pen, corners = ImageDraw.Draw(image), (left, top, left + 14, top + 14)
        (pen.ellipse if label == "ball" else pen.rectangle)(corners, tuple(chance.integers(0, 100, 3).tolist()))
        for name, gain in (("original", 1.0), ("dim", 0.6), ("dark", 0.3)):
            for place in ("my_pairs", "photographs"):
                path = folder / place / label / f"thing{number}" / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image.point(lambda level, gain=gain: round(gain * level)).save(path)
    for person in range(8):
        for light in range(4):
            path = folder / "my_faces" / f"person{person % 4}" / f"pose{person}" / f"light{light}.pgm"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((96, 84), 40 * light + person, np.uint8)).save(path)
    for scene in range(12):
        tones = chance.integers(60, 200, (6, 8, 3)).astype(np.uint8)
        for light in range(3):
            path = folder / "my_scenes" / f"scene{scene}" / f"light{light}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            shown = Image.fromarray((tones * (0.4 + 0.3 * light)).astype(np.uint8))
            shown.resize((128, 96)).convert("L").save(path)
    module = folder / "my_package" / "my_module.py"
    module.parent.mkdir()
    (module.parent / "__init__.py").touch()
    module.write_text(
        "from torch import nn\n\n\nclass MyModel(nn.Sequential):\n    def __init__(self):\n"
        "        super().__init__(nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64, 3))\n"
    )
    code = "import torch; from my_package.my_module import MyModel; torch.save(MyModel().state_dict(), 'weights.pth')"
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
    model = build("wide_resnet", depth=10, width=1, classes=10)
    save_model(model, folder / "my_model", image_shape=(3, 32, 32), classes=10, data="cifar10")
    (plan,) = re.findall(r"```yaml\n(# plan.yaml.*?)```", (ROOT / "docs" / "cluster.md").read_text(), re.DOTALL)
    found = OmegaConf.create(plan)
    found.overrides += shortened("train", found.overrides)
    OmegaConf.save(found, folder / "plan.yaml")


def between(folder):
    """What the page on sharing calls by another name."""
    learned, lamps = folder / "outputs" / "pairs" / "latest", folder / "outputs" / "lamps"
    if learned.exists() and not lamps.exists():
        shutil.copytree(learned, lamps)


def _newest(word, folder):
    """A sweep's folder is named by the time alone: the newest one, where there is no ``latest``."""
    key, _, path = word.rpartition("=")
    place = folder / path
    if not path.endswith("/latest") or place.exists() or not place.parent.is_dir():
        return word
    newest = max(place.parent.iterdir()).relative_to(folder)
    return f"{key}={newest}" if key else str(newest)


def run(line, folder):
    """A command in the folder: how it ended, with its last line where it failed, and its seconds."""
    for pattern, reason in LEFT_OUT.items():
        if re.search(pattern, line):
            return reason, 0.0
    _, _, module, *arguments = (_newest(word, folder) for word in shlex.split(line))
    entry = module.rpartition(".")[2]
    started = time.perf_counter()
    try:
        if entry in ("train", "evaluate"):
            os.chdir(folder)
            arguments += shortened(entry, arguments)
        elif entry == "search":
            arguments += ["--trials", "1"]
        elif entry == "benchmark":
            arguments = [*arguments[:1], "--seconds", "0.2"]  # each loop has tests of its own; all of them take minutes
        elif "corrupt" in arguments:
            arguments += ["--kinds", "brightness"]
    except Exception as error:  # it does not even compose
        return f"FAILED: {error}", time.perf_counter() - started
    sources = os.pathsep.join((str(folder), str(ROOT / "src")))  # these, not those of an installed checkout
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": sources, "WANDB_MODE": "offline", "TRACKIO_DIR": str(folder / "trackio")},
    )  # fmt: skip
    last = ((done.stderr.strip() or done.stdout.strip()).splitlines() or [""])[-1]
    seconds = time.perf_counter() - started
    if done.returncode == 2 and "download" in last:
        return f"needs data: {last}", seconds
    return "ok" if done.returncode == 0 else f"FAILED ({done.returncode}): {last}", seconds


def main():
    """The command line."""
    parser = argparse.ArgumentParser(prog="docs/check.py", description=__doc__)
    parser.add_argument("pages", nargs="*", default=PAGES, help="default: README.md and the guides")
    parser.add_argument("--folder", type=Path, help="to work in; default: one that is removed")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (chosen.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "plan.yaml").exists():
            prepare(folder)
        counts = Counter()
        for page in chosen.pages:
            for line in commands((ROOT / page).read_text()):
                said, seconds = run(line, folder)
                between(folder)
                counts[said.partition(":")[0].partition(" (")[0]] += 1
                print(f"{page} | {line} | {said} | {seconds:.0f} s", flush=True)
        os.chdir(ROOT)
    print(", ".join(f"{count} {said}" for said, count in counts.most_common()))
    sys.exit(1 if any(said.startswith("FAILED") for said in counts) else 0)


if __name__ == "__main__":
    main()
