"""Learning flows and VAE-GANs, and training over them, as a user does."""

import csv
import json

import pytest
import torch

from latentrobust import load_perturbation_set
from latentrobust.errors import InputError
from latentrobust.perturbation_sets import FlowSet
from latentrobust.report import main as report_main
from latentrobust.report import report
from latentrobust.seen import Seen, note_seen

from .conftest import accuracy_by_hand
from .test_commands import command
from .test_train import stable

DIGITS = [
    "data=digits", "data/perturbation=none", "data.canvas=28", "data.validation=200", "data.batch_size=100",
    "data.test_size=40", "trainer.accelerator=cpu", "print_config=false", "callbacks.progress=null",
]  # fmt: skip
FLOW = [
    "experiment=mnist/flow", *DIGITS, "learner.network.blocks=2", "learner.network.hidden=16", "trainer.max_epochs=2",
    "learner.optimizer.lr=1e-3",
]  # fmt: skip
GLOW = [
    "experiment=cifar10/flow", *DIGITS, "learner.network.image_shape=[1,28,28]", "learner.network.levels=2",
    "learner.network.steps=1", "learner.network.hidden=8", "trainer.max_epochs=1", "trainer.limit_train_batches=4",
    "learner.scheduler.images=200", "learner.initialize_on=32",
]  # fmt: skip
CLASSIFIER = [*DIGITS, "data.train_size=200", "data.train_fraction=null", "trainer.max_epochs=1"]
LENET = ["experiment=mnist/lenet", *CLASSIFIER]


@pytest.fixture(scope="module")
def flow(run):
    return run("flow", *FLOW, "report=true", "logger=wandb", "logger.wandb.offline=true")


def test_a_flow_is_learned_measured_and_stored(flow):
    metrics = json.loads((flow.folder / "metrics.json").read_text())
    assert metrics["bits_per_dim"] < 9.5
    told = [text for text in flow.warnings if "Unusable: the flow needs" in text]
    assert bool(told) == (metrics["bits_per_dim"] >= 8)
    assert ("Unusable" in (flow.folder / "report.html").read_text()) == bool(told)
    assert metrics["round_trip_error"] < 1e-5
    for figure in ("temperature", "perturbed", "interpolation", "bits_per_dim"):
        assert (flow.folder / "figures" / f"{figure}.png").is_file()
    assert "bits a value" in (flow.folder / "report.html").read_text()
    assert len(list(flow.folder.rglob("media/images/val/draws*.png"))) == 2  # a picture at each validation
    learner = flow.modules[0]
    assert learner.history["epoch"] == [1, 2]
    assert len(learner.history["train"]) == len(learner.history["val"]) == 2
    loaded = load_perturbation_set(flow.folder)
    assert isinstance(loaded, FlowSet)
    assert (loaded.ball.norm, loaded.ball.radius, loaded.needs_label) == ("linf", 0.15, True)
    assert (flow.folder / "per_example.csv").read_text().splitlines()[0] == "index,kind,bits_per_dim,round_trip_error"


def test_a_stored_flow_is_measured_the_same(flow, run):
    again = run(
        "again",
        *FLOW[:1],
        *DIGITS,
        "perturbation_set=trained",
        f"perturbation_set.path={flow.folder}",
        entry="evaluate",
    )
    for name in ("bits_per_dim", "round_trip_error"):
        assert again.metrics[name] == pytest.approx(flow.metrics[name], rel=1e-5)


def test_an_interrupted_flow_goes_on_as_if_it_had_not_been(flow, run):
    half = run("half", *FLOW, "trainer.max_steps=13", "test=false")
    resumed = run("resumed", *FLOW, f"ckpt_path={half.folder}/checkpoints/last.ckpt")
    assert resumed.metrics["bits_per_dim"] == pytest.approx(flow.metrics["bits_per_dim"], rel=1e-6)
    assert resumed.modules[0].history["val"] == pytest.approx(flow.modules[0].history["val"], rel=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["learner.recompute=true", "learner.network.lu=true", "learner.network.scale=bounded"],
        ["trainer.precision=bf16-mixed"],
        ["callbacks=average", "callbacks.average.decay=0.9", "+trainer.val_check_interval=0.5"],
    ],
)
def test_a_glow_is_learned(run, options):
    found = run("glow", *GLOW, *options)
    assert found.metrics["round_trip_error"] < (5e-3 if "trainer.precision=bf16-mixed" in options else 1e-4)
    assert 0 < found.metrics["bits_per_dim"] < 20
    assert found.perturbations.network.initialized
    assert found.modules[0].network.initialized
    assert len(set(map(len, found.modules[0].history.values()))) == 1


def test_the_same_seed_gives_the_same_flow(run):
    assert stable(run("one", *GLOW).folder) == stable(run("two", *GLOW).folder)


def test_a_radius_can_be_selected_on_pairs(run):
    options = [option for option in GLOW if not option.startswith("data/perturbation")]
    found = run("pairs", *options, "data/perturbation=linf", "learner.radius=null", "evaluation/quality=default",
                "evaluation.quality.settings.steps=2", "evaluation.quality.detail=4")  # fmt: skip
    assert found.perturbations.latent_norms["max"] == found.metrics["radius"]
    assert found.metrics["quality/encoder_ae"] < 1e-3  # a flow reaches every pair that its ball holds
    with pytest.raises(InputError, match="has no pairs to select a radius from"):
        run("none", *GLOW, "learner.radius=null")


def test_a_flow_measured_on_images_that_it_knows_is_told_so(flow, run):
    """Its likelihood is better there; 1,300 of the 1,797 digits are learned from, the last are to test on."""
    known = run("known", *DIGITS, "evaluation=flow", f"from={flow.folder}", entry="evaluate")
    assert known.metrics["seen/set"] == 0
    data = flow.modules[0].trainer.datamodule
    note_seen(found := load_perturbation_set(flow.folder), Seen.smallest(data.hashes("test").hashes[:20]))
    place = found.save(flow.folder / "knows")
    known = run("knows", *DIGITS, "evaluation=flow", f"from={place}", entry="evaluate")
    assert known.metrics["seen/set"] == 0.5
    assert any("the set was learned from, or selected on, 50% of the images" in said for said in known.warnings)


def test_classifiers_over_a_flow(flow, run):
    for name in ("randomized_la", "adversarial_la"):
        found = run(name, "experiment=mnist/lenet", f"method={name}", *CLASSIFIER, f"from={flow.folder}")
        assert found.metrics["accuracy/clean"] == pytest.approx(accuracy_by_hand(found), abs=1e-6)
        assert {"fit_accuracy", "fit_loss", "loss/clean"} <= set(found.metrics)
        assert "accuracy/perturbed" not in found.metrics


def test_classifiers_over_a_flow_are_attacked_like_any(flow, run):
    found = run(
        "attacked", "experiment=mnist/lenet", "method=randomized_la", *CLASSIFIER, f"from={flow.folder}",
        "evaluation/robust=paper", "evaluation.robust.attacks.pgd.steps=2", "evaluation.robust.examples=8",
    )  # fmt: skip
    rows = list(csv.DictReader((found.folder / "per_example.csv").open()))
    left = [float(row["robust/pgd/eps=0.15"]) for row in rows if row["robust/pgd/eps=0.15"]]
    assert len(left) == 8
    assert found.metrics["robust/full"] == pytest.approx(sum(left) / 8)


def test_a_schedule_of_three_stages_over_a_flow(run):
    glow = run("stages_flow", *GLOW, "test=false")
    found = run(
        "stages", "experiment=cifar10/model", "method=table_8/three_stages", *CLASSIFIER, f"from={glow.folder}",
        "model=lenet5", "trainer.max_epochs=3", "training_perturbation.epochs={first:1,second:1,third:1}",
    )  # fmt: skip
    assert found.metrics["steps"] == 6


@pytest.mark.parametrize("name", ["common", "cutout", "mixup", "augmix"])
def test_augmentations_train(run, name):
    found = run(name, *LENET, f"image_augmentation@task.augmentation={name}")
    assert found.metrics["accuracy/clean"] == pytest.approx(accuracy_by_hand(found), abs=1e-6)


TWICE = "+trainer.accumulate_grad_batches=2"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("loss", ["experiment=mnist/linf_fc", *DIGITS, "data/perturbation=linf", "learner.network.hidden=16", TWICE]),
        ("bits_per_dim", [*FLOW, TWICE]),
        ("loss", ["experiment=fashion_mnist/vae_gan", *DIGITS, "learner.network.channels=2"]),
        ("loss", [*LENET, TWICE]),
    ],
)
def test_bars_get_the_loss_that_is_logged(run, name, options, request):
    """What is differentiated is a sum over a batch, or over pixels, or divided among accumulated batches."""
    short = ["trainer.max_epochs=1", "trainer.limit_train_batches=1", "test=false", "report=false"]
    place = f"bar_{request.node.callspec.id}"
    (module,) = run(place, *options, *short).modules
    assert list(module.of_step) == [name]
    logged = module.trainer.callback_metrics[f"train/{name}"]
    assert float(module.of_step[name]) == pytest.approx(float(logged), rel=1e-5)


def test_vae_gans_and_training_on_their_manifold(run):
    gan = run(
        "gan",
        "experiment=fashion_mnist/vae_gan",
        *DIGITS,
        "learner.network.channels=2",
        "trainer.max_epochs=2",
        "data.train_size=300",
    )
    losses = gan.modules[0].trainer.callback_metrics
    assert losses["val/reconstruction"] < 0.3
    batches = 2 * -(-gan.modules[0].trainer.datamodule.count("train") // gan.modules[0].trainer.datamodule.batch_size)
    assert gan.modules[0].trainer.global_step == batches  # a step each, although two optimisers make one
    assert gan.metrics["steps"] == batches
    found = run("manifold", "experiment=fashion_mnist/model", "method=on_manifold", *CLASSIFIER, f"from={gan.folder}")
    assert found.metrics["accuracy/clean"] == pytest.approx(accuracy_by_hand(found), abs=1e-6)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["experiment=mnist/lenet", "method=randomized_la", *CLASSIFIER], "no perturbation set is named"),
        ([*FLOW, "data.canvas=32"], "the flow is for"),
        ([*FLOW, "learner.network.classes=7"], "learner.network.classes=10"),
        ([*FLOW, "learner.radius=-1"], "learner.radius must be a number above 0"),
        ([*FLOW, "data.train_size=100000"], "is 100000 of the 1300"),
        ([*FLOW, "learner.scheduler.values=[]"], "a schedule needs"),
        (
            ["experiment=mnist/lenet", *CLASSIFIER, "image_augmentation@task.augmentation=mixup", "objective=trades"],
            "mixup",
        ),
        ([*LENET, "task.select_on=perturbed"], "no perturbed images"),
        (["experiment=fashion_mnist/vae_gan", *DIGITS, "learner.network.classes=3"], "classes=10"),
        ([*FLOW, "evaluation=set"], r"no pairs to measure quality on: choose data/perturbation=…, or evaluation=flow"),
        (
            ["experiment=fashion_mnist/vae_gan", *DIGITS, "evaluation/quality=default", "test=true"],
            "no pairs .* or test=false where",
        ),
        (
            ["experiment=fashion_mnist/vae_gan", *DIGITS, "evaluation=flow", "test=true"],
            "of a VAEGAN has no likelihood",
        ),
    ],
)
def test_bad_input_is_one_clear_line(run, tmp_path_factory, overrides, message):
    with pytest.raises(Exception, match=message):
        run("bad", *overrides)
    assert not list(tmp_path_factory.getbasetemp().glob("bad*/checkpoints"))  # before any work


def test_density_is_for_flows(run):
    with pytest.raises(Exception, match="has no likelihood"):
        run("no_density", *DIGITS, "perturbation_set=pixel_ball", "evaluation=flow", entry="evaluate")


def test_runs_over_seeds_become_a_table(tmp_path, capsys):
    done = command(
        "train", "-m", "experiment=mnist/lenet", *DIGITS, "trainer.max_epochs=1", "data.batch_size=20",
        "data.train_fraction=null", "data.train_size=60,120", "seed=1,2", f"hydra.sweep.dir={tmp_path}/sweep",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = report(tmp_path / "sweep")
    assert summary.keys == ["data.train_size"]
    assert summary.constant["experiment"] == "mnist/lenet"
    assert [found["accuracy/clean"].count for _, found in summary.rows] == [2, 2]
    for name in ("report.csv", "report.md", "report.tex", "accuracy_clean.png"):
        assert (tmp_path / "sweep" / "report" / name).is_file()
    elsewhere = ["--x", "data.train_size", "--out", str(tmp_path / "other")]
    report_main([str(tmp_path / "sweep"), "--metric", "loss/*", *elsewhere])
    assert "loss/clean" in capsys.readouterr().out
    for arguments, message in (
        ([str(tmp_path / "nothing")], "no folder"),
        ([str(tmp_path / "other")], "no finished run"),
        ([str(tmp_path / "sweep"), "--metric", "robust/*"], "no run has a metric"),
        ([str(tmp_path / "sweep"), "--x", "experiment"], "--x experiment"),
    ):
        with pytest.raises(SystemExit) as stopped:
            report_main(arguments)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


def test_a_flow_that_lost_its_inverse_is_named(run, tmp_path):
    found = run("singular", *GLOW, "test=false")
    with torch.no_grad():
        found.perturbations.network.flow.steps.flows[0].convolution.weight[0] = 0
    with pytest.raises(InputError, match=r"flow\.steps\.flows\.0\.convolution of the flow has become singular"):
        found.perturbations.at(torch.rand(1, 1, 28, 28)).decode(torch.zeros(1, 1, 28, 28))
