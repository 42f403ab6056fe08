"""From somebody's folder to a set, a model, its report: by the commands, and by the same steps in Python."""

import csv
import json
import os
import random
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobRuntime
from PIL import Image, ImageFilter

import latentrobust
from latentrobust import CoverageSettings, RobustSettings, assess
from latentrobust.data.images import digits, photos
from latentrobust.data.pairs.formulas import FormulaPairs
from latentrobust.data.pairs.given import GivenPairs
from latentrobust.errors import InputError
from latentrobust.networks.cvae import build
from latentrobust.report import report
from latentrobust.reporting.comparison import compare
from latentrobust.robustness.attacks import PGD
from latentrobust.runs import evaluate, train
from latentrobust.seen import Hashes, hashes_of, seen_by
from latentrobust.transforms.noise import Unchanged

from ..conftest import compose_in_process

QUICK = [
    "print_config=false", "callbacks.progress=null", "trainer.accelerator=cpu", "trainer.max_epochs=1",
    "evaluation.quality.settings.steps=2", "evaluation.quality.settings.likelihood_draws=2",
    "evaluation.quality.settings.own_likelihood=false", "evaluation.quality.detail=2",
    "evaluation.quality.coverage.steps=2",
]  # fmt: skip
MODEL = [
    "~learner", "task=classification", "callbacks=classification", "model=auto", "training_perturbation=adversarial",
    "training_perturbation.steps=1", "objective=standard", "perturbation_set=trained", "evaluation=model",
    "evaluation/certify=default", "evaluation/robust=paper",
    "evaluation.robust.attacks.pgd.steps=2", "evaluation.certify.n=50",
    "evaluation.certify.n0=10", "evaluation.certify.alpha=0.05", "evaluation.certify.examples=3",
    "task.select_on=perturbed", "print_config=false", "callbacks.progress=null", "trainer.accelerator=cpu",
    "trainer.max_epochs=1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("LATENTROBUST_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def curve(image, gamma):
    return ((image / 255.0) ** gamma * 255).round().astype(np.uint8)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Patches of photographs: groups of gammas by class, parallel folders, and a manifest."""
    root = tmp_path_factory.mktemp("own")
    found = photos(side=16, train=30, test=2)
    patches = found.train.images.permute(0, 2, 3, 1).numpy()
    rows = ["clean,perturbed,kind,label,split"]
    for number, (patch, label) in enumerate(zip(patches, found.train.labels.tolist(), strict=True)):
        group = root / "groups" / f"photo{label % 2}" / f"patch{number}"
        group.mkdir(parents=True)
        for gamma in (1.0, 0.5, 2.0):
            Image.fromarray(curve(patch, gamma)).save(group / f"gamma{gamma:g}.png")
        Image.fromarray(patch).filter(ImageFilter.GaussianBlur(1)).save(group / "blur.webp", lossless=True)
        side, ending = (16, 20, 24)[number % 3], ("png", "jpg", "tif")[number // 2 % 3]
        for folder, gamma in (("clean", 1.0), ("perturbed/dark", 2.0), ("perturbed/bright", 0.5)):
            place = root / "mixed" / folder / f"photo{label % 2}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(curve(patch, gamma)).resize((side, side)).save(place / f"{number}.{ending}")
        for folder, gamma in (("clean", 1.0), ("perturbed/dark", 2.0), ("perturbed/bright", 0.5)):
            place = root / "parallel" / folder
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(curve(patch, gamma)).save(place / f"{number}.{'png' if gamma == 1 else 'bmp'}")
        place = root / "table"
        place.mkdir(exist_ok=True)
        for name, gamma in (("clean", 1.0), ("dark", 2.0)):
            Image.fromarray(curve(patch, gamma)).save(place / f"{number}_{name}.png")
        split = ("train", "train", "train", "val", "test")[number // 2 % 5]
        rows.append(f"{number}_clean.png,{number}_dark.png,dark,photo{label % 2},{split}")
    (root / "table" / "pairs.csv").write_text("\n".join(rows) + "\n")
    return root


LAYOUTS = {
    "groups": ["data.root={}/groups", "data.original=gamma1", "data.label=parent"],
    "parallel": ["data.root={}/parallel"],
    "mixed": ["data.root={}/mixed", "data.label=parent", "data.size=[16,16]"],
    "table": ["data.root={}/table/pairs.csv"],
}


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_from_a_folder_to_a_set_and_a_robust_model(sets, tmp_path, layout):
    data = ["data=pairs", *(option.format(sets) for option in LAYOUTS[layout])]
    drawn = layout == "groups"  # and numbers alone otherwise
    cfg = compose_in_process("train", *data, *QUICK, f"report={drawn}", f"paths.output_dir={tmp_path}/set")
    with pytest.warns(UserWarning, match="do not reach"):
        learned = train(cfg)
    assert learned.perturbations.image_shape == (3, 16, 16)
    assert 0 <= learned.metrics["coverage/radius/low"] <= learned.metrics["coverage/radius"] <= 1
    stored = json.loads((tmp_path / "set" / "perturbation_set" / "config.json").read_text())
    assert stored["coverage"]["split"] == "validation"
    assert (tmp_path / "set" / "report.html").is_file() == (tmp_path / "set" / "figures").is_dir() == drawn
    if drawn:
        report = (tmp_path / "set" / "report.html").read_text()
        assert "of the perturbations of examples that nothing was learned from" in report
        assert (tmp_path / "set" / "figures" / "coverage.png").is_file()
    over = [
        *MODEL,
        *data,
        f"report={drawn}",
        f"perturbation_set.path={tmp_path}/set",
        f"paths.output_dir={tmp_path}/model",
    ]
    cfg = compose_in_process("train", *over)
    if layout == "parallel":
        with pytest.raises(InputError, match=r"data pairs has no labels, so a set can be learned"):
            train(cfg)
        return
    with pytest.warns(UserWarning, match="do not reach"):
        trained = train(cfg)
    assert {"accuracy/clean", "accuracy/perturbed", "robust/full", "certified/p50"} <= set(trained.metrics)
    assert (tmp_path / "model" / "report.html").is_file() == drawn
    if layout == "groups":
        _pictured(trained.modules[-1])
        _same_in_python(cfg, tmp_path)


def _pictured(test):
    """What is shown beside the worst images are the images that they were made of, of examples with several pairs."""
    x, y = test.adversarial_of
    assert len(x) == len(y) == len(torch.unique(x.flatten(1), dim=0)) > 3
    distances = torch.cdist(test.adversarial.images[-1].flatten(1), x.flatten(1))
    assert distances.argmin(1).tolist() == list(range(len(x)))


def _same_in_python(cfg, tmp_path):
    """`assess` and `evaluate` agree key by key for the same model, set and data."""
    overrides = [
        "data=pairs", f"data.root={cfg.data.root}", "data.original=gamma1", "data.label=parent", "evaluation=model",
        "evaluation/robust=paper",
        "evaluation.robust.attacks.pgd.steps=2", "evaluation.robust.examples=4", "print_config=false", "model=trained",
        f"model.path={tmp_path}/model", f"perturbation_set.path={tmp_path}/set", f"paths.output_dir={tmp_path}/again",
        "callbacks.progress=null", "trainer.accelerator=cpu",
    ]  # fmt: skip
    with pytest.warns(UserWarning, match="do not reach"):
        measured = evaluate(compose_in_process("evaluate", *overrides)).metrics
    read = latentrobust.read_pairs(cfg.data.root, original="gamma1", label="parent")
    robust = RobustSettings(attacks={"pgd": PGD(steps=2)}, examples=4)
    model = latentrobust.load_model(tmp_path / "model")
    stored = latentrobust.load_perturbation_set(tmp_path / "set")
    with pytest.warns(UserWarning, match="do not reach"):
        found = assess(model, data=GivenPairs(read), perturbations=stored, robust=robust)
    assert found.metrics == {key: measured[key] for key in found.metrics}
    of_set = json.loads((tmp_path / "set" / "metrics.json").read_text())
    settings = CoverageSettings(steps=2)
    covered = assess(model, data=GivenPairs(read), perturbations=stored, robust=None, coverage=settings).metrics
    keys = {key for key in of_set if key.startswith("coverage")}
    assert {key: covered[key] for key in covered if key.startswith("coverage")} == {key: of_set[key] for key in keys}
    assert set(measured) - set(found.metrics) == {"test_seconds"}


def test_several_pairs_of_one_example_and_kind_are_rows_of_their_own(tmp_path):
    x = np.repeat(np.random.default_rng(0).integers(0, 256, (10, 1, 8, 8), dtype=np.uint8), 3, 0)
    np.savez(
        tmp_path / "own.npz", x=x, x_tilde=255 - x // (1 + np.arange(30) % 3)[:, None, None, None].astype(np.uint8)
    )
    overrides = [*QUICK, f"paths.output_dir={tmp_path}/run", "data=pairs", f"data.root={tmp_path}/own.npz"]
    with pytest.warns(UserWarning, match="do not reach"):
        train(compose_in_process("train", *overrides))
    rows = (tmp_path / "run" / "per_example.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == ["0"] * 3 + ["1"] * 3
    assert len({row.split(",")[2] for row in rows[1:]}) == 6


def test_a_set_and_a_model_measured_on_pairs_that_they_know_are_not_said_to_be_measured_on_unseen_ones(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "own.npz", x=x, x_tilde=x // 2, y=np.arange(40) % 2)
    data = ["data=pairs", f"data.root={tmp_path}/own.npz"]
    learned = train(compose_in_process("train", *data, *QUICK, "report=false", f"paths.output_dir={tmp_path}/set"))
    over = [option for option in MODEL if not option.startswith(("evaluation.", "evaluation/"))]
    over += [*data, "evaluation.robust=null", "report=false"]
    over += [f"perturbation_set.path={tmp_path}/set"]
    trained = train(compose_in_process("train", *over, f"paths.output_dir={tmp_path}/model"))
    assert learned.metrics["seen/set"] == trained.metrics["seen/model"] == 0
    measured = evaluate(
        compose_in_process(
            "evaluate", *data, "data.split_seed=3", *[option for option in QUICK if "epochs" not in option],
            "evaluation=all", "evaluation.robust=null", "evaluation.certify=null",
            "model=trained", f"model.path={tmp_path}/model", f"perturbation_set.path={tmp_path}/set",
            f"paths.output_dir={tmp_path}/again",
        )
    )  # fmt: skip
    assert measured.metrics["seen/set"] == measured.metrics["seen/model"] > 0.5
    attacked = evaluate(
        compose_in_process(
            "evaluate", *data, "data.split_seed=3", "evaluation=model", "evaluation/robust=paper",
            "evaluation.robust.attacks.pgd.steps=1", "evaluation.robust.radii=[full]", "evaluation.robust.examples=4",
            "model=trained", f"model.path={tmp_path}/model", f"perturbation_set.path={tmp_path}/set", "report=false",
            f"paths.output_dir={tmp_path}/attacked",
        )
    )  # fmt: skip
    assert attacked.metrics["seen/set"] == measured.metrics["seen/set"]  # a model is attacked over it
    share = f"{measured.metrics['seen/set']:.0%}"
    warnings = json.loads((tmp_path / "again" / "metrics.json").read_text())["warnings"]
    for who in ("set", "model"):
        assert any(said.startswith(f"the {who} was learned from, or selected on, {share}") for said in warnings)
    report = (tmp_path / "again" / "report.html").read_text()
    assert f"of the perturbations of examples, {share} of which it was learned from" in report
    assert "unseen" not in report
    assert "nothing was learned from" not in report


def test_tests_between_sets_know_which_examples_are_of_one_object(tmp_path):
    """Pairs of one object are flipped together in comparisons of sets too."""
    x = np.random.default_rng(0).integers(0, 256, (60, 1, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "own.npz", x=x, x_tilde=x // 2, group=np.arange(60) // 3)
    for beta in (1, 2):
        train(
            compose_in_process(
                "train", "data=pairs", f"data.root={tmp_path}/own.npz", *QUICK, "report=false",
                f"learner.beta.values=[0,0.01,{beta},{beta}]",
                "learner/network=mnist_fc", f"paths.output_dir={tmp_path}/runs/{beta}",
            )
        )  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "runs" / "1" / "per_example.csv").open()))
    groups = {row["group"] for row in rows}
    assert 2 <= len(groups) < len({row["index"] for row in rows})
    found = [part for part in compare(report(tmp_path / "runs")) if part.metric == "quality/encoder_ae"]
    assert {part.pairs for part in found if part.over == "examples"} == {len(groups)}


def test_a_tuned_set_that_was_gone_on_with_knows_what_it_began_as(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
    for name, part in (("first", x[:20]), ("second", x[20:])):
        np.savez(tmp_path / f"{name}.npz", x=part, x_tilde=part // 2)
    quick = [*QUICK, "data=pairs", "test=false", "report=false", "learner/network=mnist_fc"]
    train(compose_in_process("train", *quick, f"data.root={tmp_path}/first.npz", f"paths.output_dir={tmp_path}/first"))
    tuned = [*quick, f"data.root={tmp_path}/second.npz", f"learner.init_from={tmp_path}/first"]
    train(compose_in_process("train", *tuned, f"paths.output_dir={tmp_path}/second"))
    last = f"ckpt_path={tmp_path}/second/checkpoints/last.ckpt"
    again = [*tuned, last, "trainer.max_epochs=2", f"paths.output_dir={tmp_path}/third"]
    found = train(compose_in_process("train", *again)).perturbations
    images = Hashes(hashes_of(torch.from_numpy(x)), np.arange(40))
    assert seen_by(found).known(images) == (32, 40)  # 16 of either: the others are to test on


def test_learn_and_the_command_give_the_same_weights(tmp_path):
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (24, 3, 8, 8), dtype=np.uint8)
    x_tilde = (x // 2).astype(np.uint8)
    np.savez(tmp_path / "own.npz", x=x, x_tilde=x_tilde)
    with pytest.warns(UserWarning, match="do not reach"):
        learned = latentrobust.learn(
            latentrobust.pairs(x, x_tilde, name="own"), epochs=2, device="cpu", progress=False,
            overrides=[option for option in QUICK if option.startswith("evaluation")],
        )  # fmt: skip
    assert learned.quality["quality/pgd_ae"] > 0
    assert learned.coverage.pairs == 2
    assert learned.warnings
    cfg = compose_in_process(
        "train", "data=pairs", f"data.root={tmp_path}/own.npz", *QUICK, "trainer.max_epochs=2", "test=false",
        f"paths.output_dir={tmp_path}/run",
    )  # fmt: skip
    same = train(cfg).perturbations.state_dict()
    assert all(torch.equal(value, same[name]) for name, value in learned.state_dict().items())
    loaded = latentrobust.load_perturbation_set(learned.save(tmp_path / "mine"))
    assert loaded.coverage == learned.coverage
    assert loaded.quality == learned.quality
    assert loaded.warnings == learned.warnings
    assert latentrobust.load_perturbation_set(tmp_path / "run").quality == {}  # with test=false


def test_learn_leaves_generators_variables_and_hydra_as_they_were(monkeypatch, repository):
    monkeypatch.setenv("PL_GLOBAL_SEED", "77")
    monkeypatch.delenv("PL_SEED_WORKERS", raising=False)
    x = np.random.default_rng(0).integers(0, 256, (24, 1, 8, 8), dtype=np.uint8)

    def drawn(seed):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        learned = latentrobust.learn(
            latentrobust.pairs(x, x // 2), network="mnist_fc", epochs=1, measure=False, progress=False, device="cpu"
        )
        found = [random.random(), float(np.random.rand()), float(torch.rand(()))]
        return learned, found

    with initialize_config_dir(config_dir=str(repository / "conf"), version_base="1.3", job_name="mine"):
        first, one = drawn(1)
        assert compose("train", overrides=["data=digits"]).name == "digits"
        assert JobRuntime.instance().get("name") == "mine"
    filters = list(warnings.filters)
    second, two = drawn(2)
    assert warnings.filters == filters
    assert not set(one) & set(two)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    assert os.environ["PL_GLOBAL_SEED"] == "77"
    assert "PL_SEED_WORKERS" not in os.environ
    assert not GlobalHydra.instance().is_initialized()


@contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "surroundings",
    [lambda: torch.autocast("cpu", torch.bfloat16), torch.inference_mode, torch.no_grad,
     lambda: default_dtype(torch.float64)],
    ids=["autocast", "inference_mode", "no_grad", "float64"],
)  # fmt: skip
def test_learn_is_the_same_wherever_it_is_called(surroundings):
    x = np.random.default_rng(0).integers(0, 256, (24, 1, 8, 8), dtype=np.uint8)
    network = build("mnist_fc", image_shape=[1, 8, 8], hidden=16, latent=3)
    before = {name: value.clone() for name, value in network.state_dict().items()}

    def learned():
        return latentrobust.learn(
            latentrobust.pairs(x, x // 2), network=network, epochs=2, batch_size=8, measure=False, progress=False,
            device="cpu", overrides=["learner.radius=coverage=0.5", "learner.optimizer.lr=1e-2"],
        )  # fmt: skip

    plain = learned()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with surroundings():
        asked = torch.rand(()).dtype
        there = learned()
        assert torch.rand(()).dtype == asked
    assert there.ball.radius == plain.ball.radius
    assert all(torch.equal(value, there.state_dict()[name]) for name, value in plain.state_dict().items())


def test_flows_are_learned_and_measured_without_pairs_and_what_cannot_be_is_refused_before_any_work():
    data = FormulaPairs(lambda: digits(8), Unchanged(), "digits", None, 64, 100, test_size=64)
    options = {"epochs": 1, "progress": False, "device": "cpu"}
    learned = latentrobust.learn(data, kind="flow", **options)
    assert set(learned.quality) == {"bits_per_dim", "round_trip_error", "seen/set"}
    x = np.random.default_rng(0).integers(0, 256, (9, 1, 8, 8), dtype=np.uint8)
    own = latentrobust.pairs(x, x // 2)
    asked = {"overrides": ["evaluation=flow"], **options}
    assert "bits_per_dim" in latentrobust.learn(own, kind="flow", **asked).quality
    with pytest.raises(InputError, match=r"a set of a CVAE has no likelihood: evaluation\.density is for flows"):
        latentrobust.learn(own, network="mnist_fc", **(asked | {"epochs": 100_000}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "gan"}, "kind must be one of cvae, flow"),
        ({"network": "nothing"}, "learn: .*nothing"),
        ({"network": torch.nn.Linear(2, 2)}, "network must be"),
        ({"epochs": 0}, "epochs must be"),
        ({"overrides": ["learner.nothing=1"]}, "nothing"),
        ({"overrides": ["data.validation=0.5"]}, "data.validation=0.5 does nothing, for the data is given"),
        ({"overrides": ["+data.name=x"]}, "data.name=x does nothing, for the data is given"),
    ],
)
def test_bad_options_of_learn_are_refused_before_any_work(options, message):
    x = np.zeros((12, 1, 8, 8), np.uint8)
    x[:, 0, 0, 0] = np.arange(12)
    with pytest.raises(InputError, match=message):
        latentrobust.learn(latentrobust.pairs(x, x), progress=False, **options)


def test_a_batch_size_is_not_taken_for_data_that_has_one():
    x = np.arange(12, dtype=np.uint8)[:, None, None, None].repeat(8, 2).repeat(8, 3)
    module = latentrobust.pairs(x, x).as_data()
    with pytest.raises(InputError, match="batch_size=8 is of pairs"):
        latentrobust.learn(module, batch_size=8, progress=False)


def test_a_flow_is_learned_from_pairs_without_labels():
    x = np.random.default_rng(0).integers(0, 256, (24, 1, 8, 8), dtype=np.uint8)
    flow = ["learner/network=glow", *(f"learner.network.{size}" for size in ("levels=1", "steps=1", "hidden=4"))]
    learned = latentrobust.learn(
        latentrobust.pairs(x, x // 2), "flow", epochs=1, device="cpu", measure=False, progress=False, overrides=flow
    )
    assert learned.latent_norms["max"] > 0
