"""Training and evaluating models as a user does."""

import csv
import json

import numpy as np
import pytest
import torch
from hydra.errors import InstantiationException

import latentrobust
from latentrobust import load_model
from latentrobust.errors import InputError
from latentrobust.refusals import describe_error, is_bad_input
from latentrobust.robustness.training import CatastrophicOverfittingError
from latentrobust.runs import evaluate, train

from ..conftest import SMALL, compose_in_process
from .conftest import accuracy_by_hand
from .test_commands import command, one_line
from .test_train import TIMES, stable

TINY_MODEL = [
    # Seconds: LeNet-5 on the digits, the exact ℓ∞ ball, a short attack on a few test images.
    "experiment=mnist/pixel_linf_adversarial",
    "data=digits",
    "data/perturbation=linf",
    "data.test_size=24",
    "data.batch_size=64",
    "model=lenet5",
    "perturbation_set.radius=0.1",
    "training_perturbation.steps=2",
    "task.attack_examples=20",
    "task.validation_attack.steps=2",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=2",
    "evaluation/robust=paper",
    "evaluation.robust.attacks.pgd.steps=4",
    "evaluation.robust.radii=[0.02,full]",
    "evaluation.robust.examples=20",
    "evaluation/certify=default",
    "evaluation.certify.radii=[0.05,0.1]",
    "evaluation.certify.n=100",
    "evaluation.certify.n0=20",
    "evaluation.certify.alpha=0.01",
    "evaluation.certify.examples=10",
    "print_config=false",
    "callbacks.progress=null",
]
MEASURED = [
    option
    for option in TINY_MODEL
    if option.startswith(("experiment", "data", "perturbation_set", "evaluation", "print"))
]


def start(folder, *overrides, entry="train", base=TINY_MODEL):
    cfg = compose_in_process(entry, *base, "report=false", *overrides, f"paths.output_dir={folder}")
    return (train if entry == "train" else evaluate)(cfg)


@pytest.fixture
def run(tmp_path):
    return lambda name, *overrides, **how: start(tmp_path / name, *overrides, **how)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One adversarially trained model that many tests look at and none changes."""
    return start(tmp_path_factory.mktemp("runs") / "model", "report=true")


def test_a_run_leaves_what_it_promises(finished):
    folder = finished.folder
    for name in ("DONE", "config.yaml", "metrics.json", "per_example.csv", "report.html", "certificates.jsonl"):
        assert (folder / name).is_file(), name
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    figures = {path.stem for path in (folder / "figures").iterdir()}
    assert figures == {"robust_accuracy", "smallest_offset", "certified_accuracy", "adversarial", "training"}
    metrics = json.loads((folder / "metrics.json").read_text())
    expected = {
        "accuracy/clean", "accuracy/perturbed", "robust/eps=0.02", "robust/eps=0.1", "robust/full",
        "robust/pgd/eps=0.1", "certified/eps=0.05", "certified/eps=0.1", "smoothed/clean", "smoothed/abstained",
        "smoothed/sigma", "radius",
        "fit_seconds", "test_seconds",
    }  # fmt: skip
    assert expected <= set(metrics)
    assert metrics["robust/eps=0.1"] <= metrics["robust/eps=0.02"]
    rows = list(csv.DictReader((folder / "per_example.csv").open()))
    assert [int(row["index"]) for row in rows] == list(range(24))
    assert np.mean([float(row["clean"]) for row in rows]) == pytest.approx(metrics["accuracy/clean"])
    attacked = [float(row["robust/pgd/eps=0.1"]) for row in rows if row["robust/pgd/eps=0.1"]]
    assert len(attacked) == 20
    assert np.mean(attacked) == pytest.approx(metrics["robust/eps=0.1"])
    assert sum(bool(row["certified/radius"]) for row in rows) == 10
    report = (folder / "report.html").read_text()
    assert "does not change for any latent offset within the certified ℓ2 radius" in report
    columns = set(next(csv.reader((folder / "logs" / "metrics.csv").open())))
    assert {"val/accuracy/clean", "val/accuracy/perturbed", "val/accuracy/robust", "train/loss"} <= columns


@pytest.mark.parametrize(
    ("selected_on", "epoch"), [("clean", 4), ("robust", 3)]
)  # attacked after the second and fourth
def test_of_equal_validations_the_later_model_is_kept(run, selected_on, epoch):
    options = [f"task.select_on={selected_on}", "task.attack_every_n_epochs=2", "task.optimizer.lr=1e-12"]
    options += ["trainer.max_epochs=5", "trainer.limit_train_batches=1", "test=false"]
    folder = run("equal", *options).folder
    assert torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] == epoch


def test_the_stored_model_is_the_one_that_was_measured(finished, run):
    model = load_model(finished.folder)
    x = torch.rand(3, 1, 28, 28)
    torch.testing.assert_close(model(x), finished.models[""](x))
    again = run("again", "model=trained", f"model.path={finished.folder}", entry="evaluate", base=MEASURED)
    stored = json.loads((finished.folder / "metrics.json").read_text())
    for name, value in again.metrics.items():
        if not name.endswith(TIMES):
            assert value == pytest.approx(stored[name], rel=1e-6), name


def test_the_same_seed_gives_the_same_metrics(finished, run):
    assert stable(run("again").folder) == stable(finished.folder)
    assert stable(run("other", "seed=1").folder) != stable(finished.folder)


def test_batch_size_changes_nothing_in_the_evaluation(finished, run):
    small = run(
        "small", "model=trained", f"model.path={finished.folder}", "data.batch_size=7", "evaluation.certify.batch=9",
        "evaluation.robust.attacks.pgd.chunk=3", entry="evaluate", base=MEASURED,
    )  # fmt: skip
    for name, value in small.metrics.items():
        if not name.endswith(TIMES):
            assert value == pytest.approx(finished.metrics[name], rel=1e-6), name


@pytest.mark.parametrize(
    "stop",
    [
        ["trainer.max_epochs=1"],
        ["trainer.max_steps=28", "callbacks.last.every_n_epochs=null", "callbacks.last.every_n_train_steps=7"],
    ],
    ids=["after_an_epoch", "in_mid_epoch"],
)
def test_resuming_repeats_an_uninterrupted_run(finished, run, tmp_path, stop):
    run("first", *stop, "test=false", "task.scheduler.stretch_to=2")
    resumed = run("rest", f"ckpt_path={tmp_path}/first/checkpoints/last.ckpt", "test=false")
    states = [torch.load(folder / "checkpoints" / "last.ckpt") for folder in (finished.folder, resumed.folder)]
    assert states[0]["global_step"] == states[1]["global_step"]
    for name, value in states[0]["state_dict"].items():
        if name.startswith("model."):
            torch.testing.assert_close(value, states[1]["state_dict"][name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize(
    "overrides",
    [
        ["training_perturbation=none", "task.select_on=clean"],
        ["objective=trades"],
        ["objective=nuclear_norm"],
        ["objective=max_clean_adversarial", "training_perturbation.ratio=0.5"],
        ["trainer.precision=bf16-mixed", "task.channels_last=true"],
    ],
    ids=["none", "trades", "nuclear", "max_clean", "bf16"],
)
def test_other_ways_to_train_run(run, overrides):
    base = [option for option in TINY_MODEL if not (overrides[0].endswith("none") and "training_pert" in option)]
    short = ["trainer.max_epochs=1", "trainer.limit_train_batches=3", "evaluation.robust.examples=null"]
    base = [option for option in base if "certify" not in option]
    found = run("other", *overrides, *short, base=base)
    # In bfloat16 the run may decide near-ties otherwise than float32 by hand does.
    near = 0.03 if "trainer.precision=bf16-mixed" in overrides else 1e-6
    assert found.metrics["accuracy/clean"] == pytest.approx(accuracy_by_hand(found), abs=near)
    assert found.metrics["robust/full"] <= found.metrics["accuracy/clean"]


def test_channels_last_lays_out_the_weights(run):
    for wanted in (False, True):
        found = run(
            f"layout_{wanted}", f"task.channels_last={str(wanted).lower()}", "test=false", "trainer.max_steps=1"
        )
        weight = found.modules[0].model.conv2.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == wanted


def test_a_model_of_ones_own_by_target(run, monkeypatch, tmp_path):
    (tmp_path / "their_models.py").write_text(
        "from torch import nn\n"
        "def flat(width):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    base = [option for option in TINY_MODEL if not option.startswith("model=")]
    theirs = ["~model", "+model._target_=their_models.flat", "+model.width=8"]
    finished = run("own", *theirs, "trainer.max_epochs=1", base=base)
    with pytest.raises(InputError, match="from outside this package"):
        load_model(finished.folder)
    measured = run(
        "measured", "model=trained", f"model.path={finished.folder}",
        "model.network={_target_: their_models.flat, width: 8}", entry="evaluate", base=MEASURED,
    )  # fmt: skip
    assert measured.metrics["accuracy/clean"] == finished.metrics["accuracy/clean"]
    report = latentrobust.assess(
        finished.models[""], finished.perturbations, torch.utils.data.TensorDataset(*_images(finished, 20)).tensors,
        robust=latentrobust.RobustSettings(radii=[0.02]),
    )  # fmt: skip
    assert report.metrics["accuracy/clean"] == pytest.approx(
        float(np.mean(finished.modules[-1].tables["accuracy"]["clean"][:20]))
    )


def _images(finished, count):
    pairs = finished.data.first_pairs("test", count)
    return pairs.x, pairs.labels


def test_a_set_and_several_models_in_one_run(run):
    base = [option for option in SMALL if not option.startswith("evaluation")]
    several = [
        "task=classification", "model=lenet5", "training_perturbation=none", "objective=standard",
        "evaluation=all", "evaluation.quality.detail=4", "evaluation.quality.settings.steps=2",
        "evaluation.quality.settings.likelihood_draws=2", "evaluation/robust=paper",
        "evaluation.robust.attacks.pgd.steps=2",
        "evaluation.certify.n=100", "evaluation.certify.alpha=0.01", "evaluation.certify.examples=4",
        "evaluation.certified_models=[sampled]", "+evaluation.accuracy.ood.noise={_target_: "
        "latentrobust.transforms.noise.UniformNoise, radius: 0.6}",
        "task.select_on=clean", "+callbacks@models.plain.callbacks=classification",
        "+callbacks@models.sampled.callbacks=classification", "+models.plain.trainer.max_epochs=1",
        # The rate falls, so that the epoch that is kept is not the last one.
        "models.sampled.callbacks.best.monitor=train/lr",
        "scheduler@task.scheduler=piecewise_linear", "task.scheduler.values=[1,0]", "task.scheduler.epochs=[0,2]",
        "models.plain.callbacks.progress=null", "models.sampled.callbacks.progress=null",
        "+training_perturbation@models.sampled.training_perturbation=sample", "logger=wandb",
    ]  # fmt: skip
    finished = run("several", *several, base=base)
    metrics = json.loads((finished.folder / "metrics.json").read_text())
    assert {"quality/pgd_ae", "plain/robust/p50", "sampled/robust/full", "sampled/certified/p25"} <= set(metrics)
    assert "plain/accuracy/ood/noise" in metrics
    assert not any(name.startswith("plain/certified") for name in metrics)
    assert set(finished.models) == {"plain", "sampled"}
    for name in ("plain", "sampled"):
        assert (finished.folder / "models" / name / "model" / "config.json").is_file()
        assert (finished.folder / "models" / name / "logs" / "metrics.csv").is_file()
        best = torch.load(finished.folder / "models" / name / "checkpoints" / "best.ckpt", weights_only=False)
        assert best["epoch"] == 0
        assert metrics[f"{name}/fit_accuracy"] == pytest.approx(best["fitted"]["accuracy"])
    last = torch.load(finished.folder / "models" / "sampled" / "checkpoints" / "last.ckpt", weights_only=False)
    assert last["fitted"]["accuracy"] != pytest.approx(best["fitted"]["accuracy"])
    assert (finished.folder / "logs" / "metrics.csv").read_text().count("train/loss") == 1
    assert len(list(finished.folder.rglob("*.wandb"))) == 1  # one run a job, however many models
    with (finished.folder / "per_example.csv").open() as file:
        assert {"latent_norm", "plain/clean", "sampled/certified/radius"} <= set(csv.DictReader(file).fieldnames)


def test_catastrophic_overfitting_ends_the_run(run, tmp_path, monkeypatch):
    base = [option for option in TINY_MODEL if "training_perturbation" not in option]
    fast = ["training_perturbation=fast_adversarial", "training_perturbation.check_every=1", "test=false"]
    assert run("fast", *fast, "training_perturbation.tolerance=0.99", "trainer.max_epochs=1", base=base).metrics

    def collapse(self, model, one_step, searched, examples):
        raise CatastrophicOverfittingError("catastrophic overfitting in epoch 0: use …")

    monkeypatch.setattr("latentrobust.robustness.training.FastAdversarial._check", collapse)
    with pytest.raises(CatastrophicOverfittingError):
        run("collapsed", *fast, base=base)
    assert "catastrophic overfitting" in (tmp_path / "collapsed" / "FAILED").read_text()


def test_catastrophic_overfitting_is_one_line_on_the_command_line(tmp_path):
    done = command(
        "train", "experiment=mnist/model", "data=digits", "perturbation_set=pixel_linf", "perturbation_set.radius=0.1",
        "perturbation_set.image_shape=[1,42,42]", "trainer.accelerator=cpu", "data.train_size=160",
        "data.batch_size=16", "evaluation=accuracy_only", "task.validation_attack=null", "trainer.max_epochs=2",
        "training_perturbation=fast_adversarial", "training_perturbation.check_every=1",
        "training_perturbation.tolerance=0.0001", "report=false", "paths.output_dir=out", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert one_line(done.stderr), done.stderr
    assert "latentrobust train: catastrophic overfitting in epoch" in done.stderr
    assert (tmp_path / "out" / "FAILED").is_file()


def test_a_set_for_other_images_is_refused_before_the_run_begins(run, tmp_path):
    with pytest.raises(InputError, match="the perturbation set is for"):
        run("other", "perturbation_set.image_shape=[1,30,30]")
    assert {path.name for path in (tmp_path / "other").iterdir()} <= {"config.yaml", "FAILED", "app.log"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["perturbation_set.radius=-1"], "radius"),
        (
            ["perturbation_set.image_shape=[1,30,30]"],
            r"images \[1, 28, 28\], the perturbation set is for \[1, 30, 30\]",
        ),
        (["model.image_shape=[1,42,42]"], r"the model fails on images \[2, 1, 28, 28\]: mat1"),
        (["model.classes=4"], "the model has 4 classes, the data 10"),
        (["evaluation.certify.n=5"], "can certify nothing"),
        (["evaluation.robust.radii=[p50]"], "stores no latent norms"),
        (["evaluation.robust.radii=[-0.1]"], "whose entry 0 is a number at least 0"),
        (["training_perturbation.ratio=2"], "ratio"),
        (["~perturbation_set"], "select_on=robust needs"),
        (["evaluation.certified_models=[x]"], "certified_models names x"),
        (["~learner"], "nothing to train"),
        (["~objective"], "needs objective=…"),
        (["callbacks=default"], "choose callbacks=classification"),
        (["evaluation=set"], "choose evaluation=model"),
        (["task.attack_every_n_epochs=3"], "has a validation attack"),
        (["training_perturbation=schedule"], "after trainer.max_epochs=1"),
        (["learner=cvae"], "a set is given and one is to be learned"),
    ],
)
def test_bad_input_stops_with_one_line_and_marks_the_run(run, tmp_path, overrides, message):
    without = overrides[0].removeprefix("~") if overrides[0].startswith("~") else "nothing"
    base = [option for option in TINY_MODEL if not option.startswith(without)]
    if overrides[0] in ("evaluation=set", "training_perturbation=schedule"):
        base = [option for option in base if not option.startswith(overrides[0].split("=")[0])]
    if without == "learner":
        base = ["data=digits"]
    with pytest.raises((InputError, InstantiationException), match=message) as error:
        run("bad", *overrides, "trainer.limit_train_batches=1", "trainer.max_epochs=1", base=base)
    assert is_bad_input(error.value)
    assert "\n" not in describe_error(error.value)
    assert not (tmp_path / "bad" / "DONE").exists()
    assert not (tmp_path / "bad" / "metrics.json").exists()


def test_a_model_without_any_set_has_its_accuracy_measured(finished, run):
    measured = run(
        "plain", "data=digits", "data/perturbation=linf", "data.test_size=24", "~perturbation_set", "trainer=cpu",
        "evaluation=model", "model=trained", f"model.path={finished.folder}", "print_config=false", entry="evaluate",
        base=[],
    ).metrics  # fmt: skip
    assert measured["accuracy/clean"] == finished.metrics["accuracy/clean"]
    assert not any(name.startswith(("robust", "certified")) for name in measured)


def test_validation_attacks_each_so_many_epochs(run):
    finished = run("rare", "task.attack_every_n_epochs=2", "test=false")
    rows = list(csv.DictReader((finished.folder / "logs" / "metrics.csv").open()))
    assert [row["epoch"] for row in rows if row.get("val/accuracy/robust")] == ["1"]
    assert len([row for row in rows if row["val/accuracy/clean"]]) == 2
    assert (finished.folder / "checkpoints" / "best.ckpt").is_file()


def test_evaluating_a_model_needs_an_evaluation_of_models(finished, run):
    path = ["data=digits", "data/perturbation=linf", "model=trained", f"model.path={finished.folder}"]
    with pytest.raises(InputError, match="choose evaluation=model"):
        run("e", *path, "perturbation_set=pixel_ball", "print_config=false", entry="evaluate", base=[])
    with pytest.raises(InputError, match="untrained network"):
        run(
            "u",
            "experiment=mnist/model/paper",
            "method=adversarial",
            "perturbation_set.path=x",
            entry="evaluate",
            base=[],
        )


def test_a_set_and_a_model_are_measured_together(finished, run):
    folder = run(
        "both", *MEASURED, "model=trained", f"model.path={finished.folder}", "evaluation/quality=default",
        "evaluation.quality.detail=0", "evaluation.quality.settings.steps=1", entry="evaluate", base=[],
    ).folder  # fmt: skip
    rows = list(csv.DictReader((folder / "per_example.csv").open()))
    assert {"latent_norm", "pgd_ae", "clean", "robust/margin", "certified/radius"} <= set(rows[0])
    assert all(row["latent_norm"] and row["clean"] for row in rows)


def test_evaluating_into_the_runs_own_folder_keeps_the_model(run):
    trained = run("own", "trainer.max_epochs=1", "trainer.limit_train_batches=2", "test=false")
    with pytest.raises(InputError, match="holds a finished run with"):
        run("own", "model=trained", f"model.path={trained.folder}", entry="evaluate", base=MEASURED)
    allowed = ["paths.overwrite=true", "model=trained", f"model.path={trained.folder}"]
    again = run("own", *allowed, entry="evaluate", base=MEASURED)
    assert again.folder == trained.folder
    assert (trained.folder / "model" / "model.safetensors").is_file()
    assert (trained.folder / "metrics.json").is_file()


def test_a_stored_model_can_be_trained_further(finished, run):
    base = [option for option in TINY_MODEL if not option.startswith("model=")]
    further = run(
        "more", "model=trained", f"model.path={finished.folder}", "test=false", "trainer.max_epochs=1", base=base
    )
    before, after = finished.models[""].state_dict(), further.models[""].state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert not list(further.folder.glob("certificates*"))


@pytest.mark.slow
def test_two_processes_attack_and_certify_as_one_does(finished, tmp_path):
    done = command(
        "evaluate", *MEASURED, "model=trained", f"model.path={finished.folder}", "trainer=ddp",
        "trainer.accelerator=cpu", "callbacks=evaluate", "paths.output_dir=two", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    two = json.loads((tmp_path / "two" / "metrics.json").read_text())
    measured = [message for message in finished.warnings if not message.startswith("the adversary's")]  # its training's
    assert len(measured) == len(finished.warnings) - 1
    assert two.pop("warnings") == measured
    assert any("PGD's 4 steps" in message for message in measured)
    for message in measured:
        assert message in (tmp_path / "two" / "app.log").read_text()
        assert message in done.stdout
    for name, value in two.items():
        if not name.endswith(TIMES):
            assert value == pytest.approx(finished.metrics[name], rel=1e-6), name
    rows = [list(csv.DictReader((folder / "per_example.csv").open())) for folder in (tmp_path / "two", finished.folder)]
    for name in ("index", "certified/prediction", "certified/draws", "robust/pgd/eps=0.1", "robust/queries"):
        assert [row[name] for row in rows[0]] == [row[name] for row in rows[1]], name
    assert len(list((tmp_path / "two").glob("certificates*.jsonl"))) == 2


def test_bad_input_on_the_command_line(tmp_path):
    done = command("evaluate", "data=digits", "perturbation_set=rts", "model=trained", "model.path=nowhere",
                   "evaluation=model", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 2
    assert "no model at nowhere" in done.stderr
    assert one_line(done.stderr)


def test_a_model_that_does_not_take_the_images_is_refused_before_any_work(tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    torch.jit.script(model).save(tmp_path / "scripted.pt")
    own = ["data=digits", "perturbation_set=rts", "evaluation=model", "model=own", "model.source=scripted.pt"]
    for options, message in (
        (["model.mean=[.5,.5]", "model.std=[.2,.2]"], "expected input[2, 2, 42, 42] to have 1 channels"),
        ([], "the model has 4 classes, the data 10"),
    ):
        done = command("evaluate", *own, *options, "paths.output_dir=out", cwd=tmp_path)
        assert done.returncode == 2
        assert message in done.stderr
        assert one_line(done.stderr)
        assert not done.stdout  # the configuration is shown when it is known to work
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["FAILED", "app.log", "config.yaml"]


def test_values_that_cannot_be_leave_no_folder(tmp_path):
    done = command("train", "experiment=digits/rts", "trainer.max_epochs=-5", "paths.output_dir=out", cwd=tmp_path)
    assert done.returncode == 2
    assert not (tmp_path / "out").exists()
