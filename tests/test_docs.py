"""What README and docs say can be done: links lead somewhere, commands compose, the first page's code runs."""

import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
import warnings
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
import yaml
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from torch import nn

import latentrobust as lr
from latentrobust.errors import RobustnessWarning
from latentrobust.networks.classifiers import build as build_classifier
from latentrobust.networks.cvae import build as build_cvae
from latentrobust.overrides import quoted_coverage
from latentrobust.perturbation_sets.cvae import CVAESet

PAGES = ["README.md", *(f"docs/{name}.md" for name in (
    "architecture", "attacks", "cluster", "commands", "concepts", "configuration", "corruptions", "dashboards",
    "findings", "flows", "gallery", "index", "lights", "own_pairs", "papers", "performance", "python", "reference",
    "reliability", "results", "runs", "sharing", "state", "training",
))]  # fmt: skip
FEW = ("evaluation.quality.settings.steps=5", "evaluation.quality.coverage.steps=5")
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]*)(?:#([^)\s]+))?\)")


def anchors(text):
    """Of headings, as GitHub makes them."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"[`*]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)).lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return found


def test_every_page_is_checked(repository):
    assert {f"docs/{path.name}" for path in (repository / "docs").glob("*.md")} | {"README.md"} == set(PAGES)


def test_the_page_of_the_configuration_is_what_conf_says(repository):
    subprocess.run([sys.executable, repository / "docs" / "generate.py", "--check"], check=True)


def test_the_site_shows_every_page_and_names_that_exist(repository):
    said = yaml.safe_load((repository / "mkdocs.yml").read_text())
    shown = [page for part in said["nav"] for pages in part.values() for page in pages]
    assert sorted(f"docs/{page}" for page in shown) == sorted(set(PAGES) - {"README.md"})
    names = re.findall(r"^::: (\S+)$", (repository / "docs" / "reference.md").read_text(), re.MULTILINE)
    for name in names:
        module, _, last = name.rpartition(".")
        assert getattr(importlib.import_module(module), last).__doc__, name
    public = {f"latentrobust.{name}" for name in lr.__all__} - {"latentrobust.__version__"}
    assert public <= {name.replace("latentrobust.learning.", "latentrobust.") for name in names}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(repository, page):
    path = repository / page
    for target, anchor in LINK.findall(path.read_text()):
        if target.startswith("http"):
            continue
        there = path if not target else (path.parent / target)
        assert there.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(there.read_text()), f"{page}: {target}#{anchor}"


@pytest.mark.parametrize("page", PAGES)
def test_tables_have_a_first_row(repository, page):
    """A row after an empty line would be shown as text with bars."""
    text = re.sub(r"^```.*?^```", "", (repository / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    for table in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE):
        assert re.fullmatch(r"\|([ :]*-+[ :]*\|)+", table.splitlines()[1].strip()), table.splitlines()[0]


@pytest.fixture(scope="module")
def check():
    """What ``make docs-check`` runs."""
    spec = importlib.util.spec_from_file_location("check", Path(__file__).parents[1] / "docs" / "check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_check_of_docs_shortens_what_is_long_and_nothing_else(check):
    GlobalHydra.instance().clear()
    found = check.shortened("train", ["-m", "experiment=mnist/rts", "seed=1,2", "trainer.max_epochs=10"])
    assert {"trainer.max_epochs=2", "data.test_size=16", "evaluation.quality.settings.steps=2"} <= set(found)
    assert not [line for line in found if line.startswith(("seed", "evaluation.robust"))]
    swept = check.shortened("train", ["-m", "+sweep=figure_2", "from=x"])
    assert {"seed=1", "data.train_size=600", "task.attack_examples=4"} <= set(swept)
    assert not [line for line in swept if line.startswith(("method", "evaluation.quality"))]
    assert "data.test_size=16" not in check.shortened("train", ["data=pairs", "data.root=x"])
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    assert check.DEMO.replace("python -m", "").replace("outputs/demo/latest", "$(DEMO_DIR)") in makefile
    assert check.run("python -m latentrobust.train trainer=gpu_bf16", Path()) == ("needs a GPU", 0.0)
    assert {Path(page).stem for page in check.PAGES} <= {Path(page).stem for page in PAGES}


def test_commands_of_readme_and_docs_compose(repository, composed, check):
    counted = 0
    for page in PAGES:
        for line in check.commands((repository / page).read_text()):
            _, _, module, *arguments = shlex.split(line)
            assert hasattr(
                importlib.import_module(module + (".__main__" if module == "latentrobust.data" else "")),
                "main",
            ), line
            entry = module.removeprefix("latentrobust.")
            if entry not in ("train", "evaluate"):
                continue
            given = [
                quoted_coverage(argument.replace("wandb:ENTITY", "wandb"))
                for argument in arguments
                if argument != "-m" and not argument.startswith(("hydra", "--"))
            ]
            one = [
                argument if argument.count("[") else re.sub(r"=([^,\[']+),.*", r"=\1", argument) for argument in given
            ]
            try:
                composed(entry, *one)
            except Exception as error:
                pytest.fail(f"{page}: {line}: {error}")
            counted += 1
    assert counted > 35


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, 3))

    def forward(self, x):
        return self.layers(x)


def test_the_first_pages_code_runs(repository, tmp_path, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    for label, number in product(range(3), range(5)):
        image = torch.rand(8, 8, generator=generator)
        for name, gain in (("original", 1.0), ("dim", 0.6), ("dark", 0.3)):
            path = tmp_path / "my_pairs" / f"class{label}" / f"thing{number}" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = (255 * gain * image).round().byte().numpy()
            Image.fromarray(pixels).resize((40, 40)).save(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LATENTROBUST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(lr, "learn", partial(lr.learn, epochs=2, progress=False, overrides=FEW), raising=False)
    (code,) = re.findall(r"```python\n(.*?)```", (repository / "README.md").read_text(), re.DOTALL)
    torch.manual_seed(0)
    known = {"my_model": Small().eval(), "x": torch.rand(2, 1, 32, 32)}
    exec(code, known)
    assert 0 < known["s"].quality["coverage/radius"] <= 1
    assert {"accuracy/clean", "robust/p50"} <= set(known["results"].metrics)
    certificate = known["certificate"]
    assert certificate.radius.shape == (2,)
    assert ((certificate.prediction == -1) == (certificate.radius == 0)).all()
    known |= {"y": torch.tensor([0, 1])}
    for block in re.findall(r"```python\n(.*?)```", (repository / "docs" / "own_pairs.md").read_text(), re.DOTALL):
        # So small a set does not reach as far as one that was learned.
        exec(block.replace("epochs=100", "epochs=2").replace("coverage=0.9", "coverage=0.5"), known)
    assert lr.load_perturbation_set("my_set").coverage is not None
    assert known["results"].metrics["robust/full"] <= known["results"].metrics["accuracy/clean"]


def test_the_python_pages_code_runs(repository, tmp_path, monkeypatch):
    """On a small set and model where the demo leaves its own, with fewer steps and draws."""
    torch.manual_seed(0)
    network = build_cvae("structured", image_shape=[1, 42, 42], latent=8, residual=0)
    demo = tmp_path / "outputs" / "demo" / "latest"
    CVAESet(network, "bernoulli", radius=3.0).save(demo / "perturbation_set")
    model = build_classifier("mnist_classifier", image_shape=[1, 42, 42])
    lr.save_model(model, demo / "models/adversarial/model", image_shape=(1, 42, 42), classes=10, data="digits")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (repository / "docs" / "python.md").read_text(), re.DOTALL)
    code = "\n".join(blocks)
    for long, short in (("steps=20", "steps=2"), ("steps=50", "steps=2"), ("n=1000", "n=100")):
        assert long in code
        code = code.replace(long, short)
    known = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RobustnessWarning)  # so few steps are a weak attack
        exec(code, known)
    assert known["images"].shape == (5, 16, 1, 42, 42)
    assert repr(known["perturbations"].ball).startswith("LatentBall(shape=(8,), norm='l2'")
    assert known["found"].images.shape == (3, 16, 1, 42, 42)
    assert known["certificate"].certified(2.0).shape == (16,)
    assert "certified" in known["results"].to_markdown()
    assert known["foggy"].shape == (16, 3, 32, 32)


def test_the_papers_tables_name_experiments_that_exist(repository):
    folders = "|".join(path.name for path in (repository / "conf" / "experiment").iterdir() if path.is_dir())
    named = set(re.findall(rf"`((?:{folders})/[\w/]+)[` ]", (repository / "docs" / "papers.md").read_text()))
    assert len(named) > 12
    assert {name for name in named if not (repository / "conf" / "experiment" / f"{name}.yaml").is_file()} == set()
