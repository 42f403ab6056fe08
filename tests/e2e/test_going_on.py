"""Runs that were cut, and go on; runs that are told to stop, or have surroundings that could fail them."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import InstantiationException
from omegaconf import OmegaConf, open_dict

from latentrobust import measure, stages
from latentrobust.errors import InputError
from latentrobust.learners.cvae import CVAELearner
from latentrobust.preflight import check_optimized_metric, check_parts
from latentrobust.refusals import describe_error
from latentrobust.runs import evaluate, train
from latentrobust.tasks.classification import ClassificationTask

from ..campaign.configurations import MODEL, SET, SEVERAL
from ..conftest import compose_in_process
from .test_commands import ENVIRONMENT, begin, command, one_line, read_offline_run
from .test_train import contents, stable


def start(folder, *overrides, entry="train"):
    cfg = compose_in_process(entry, "report=false", *overrides, f"paths.output_dir={folder}")
    return (train if entry == "train" else evaluate)(cfg)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of a set and three models that was left alone."""
    yield start(tmp_path_factory.mktemp("runs") / "whole", *SEVERAL, "report=true")
    GlobalHydra.instance().clear()


class CutError(RuntimeError):
    pass


def cut(*_, **__):
    raise CutError


def counted(monkeypatch, where, name):
    calls, real = [], getattr(where, name)
    monkeypatch.setattr(where, name, lambda *a, **k: calls.append(a) or real(*a, **k))
    return calls


def test_every_part_is_done_once(whole, tmp_path, monkeypatch, capsys):
    """Cut at the second model, then at its measurement: what was finished is not done again."""
    folder, fits = tmp_path / "cut", counted(monkeypatch, stages, "_fit")
    save = stages.models.save_model
    with monkeypatch.context() as broken:
        broken.setattr(stages.models, "save_model", lambda *a, **k: cut() if len(fits) == 3 else save(*a, **k))
        with pytest.raises(CutError):
            start(folder, *SEVERAL, "report=true")
    assert (folder / "FAILED").read_text().startswith("CutError")
    assert len(fits) == 3  # the set, two models
    with monkeypatch.context() as broken:
        broken.setattr(measure, "per_example_table", cut)
        with pytest.raises(CutError):
            start(folder, *SEVERAL, "report=true")
    assert len(fits) == 6  # the end of the second, the third and the fourth
    tests = counted(monkeypatch, measure, "run_trainer")
    capsys.readouterr()
    again = start(folder, *SEVERAL, "report=true")
    assert len(fits) == 6
    assert not tests
    assert "holds this run, unfinished (it ended with: CutError" in capsys.readouterr().out
    assert stable(folder) == stable(whole.folder)
    assert again.warnings == whole.warnings
    assert not (folder / "FAILED").exists()
    for name in ("per_example.csv", "report.html"):
        assert (folder / name).stat().st_size > 1000
    assert (folder / "per_example.csv").read_text() == (whole.folder / "per_example.csv").read_text()
    pictures = {path.name for path in (whole.folder / "figures").iterdir()}
    assert {path.name for path in (folder / "figures").iterdir()} == pictures


def test_a_run_in_a_sweep_that_was_killed_in_its_third_model_ends_as_one_left_alone(whole, tmp_path):
    folder = tmp_path / "sweep"
    sweep = ["-m", *SEVERAL, "report=false", f"paths.output_dir={folder}"]
    third = folder / "0" / "models" / "adversarial" / "checkpoints" / "last.ckpt"

    def kill():
        deadline = time.time() + 200
        while not third.is_file() and time.time() < deadline:
            time.sleep(0.02)
        os.kill(json.loads((folder / "0" / ".lock").read_text())["pid"], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    assert command("train", *sweep, cwd=tmp_path).returncode == -signal.SIGKILL
    killer.join()
    assert not (folder / "0" / "models" / "smoothing").exists()
    done = command("train", *sweep, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert "going on with it" in said
    assert stable(folder / "0") == stable(whole.folder)


def test_what_a_run_is_said_to_measure_and_to_log_is_what_it_does(whole):
    """`preflight` refuses other names; it must not refuse these."""
    cfg = compose_in_process("train", *SEVERAL, f"paths.output_dir={whole.folder}")
    for name in whole.metrics:
        cfg.optimized_metric = name
        check_optimized_metric(cfg, ["standard", "augmentation", "adversarial", "smoothing"])
    unknown = ("quality/pgd", "quality/nonsense", "latent_norm/p", "coverage/pairs/p50")
    for name in ("robust/full", "standard/quality/pgd_ae", "fit_accuracy", "nobody/accuracy/clean", *unknown):
        cfg.optimized_metric = name
        with pytest.raises(InputError, match="this run measures"):
            check_optimized_metric(cfg, ["standard", "augmentation", "adversarial", "smoothing"])
    cfg.optimized_metric = "quality/pgd_e"
    with pytest.raises(InputError, match=r"quality/pgd_e: did you mean quality/pgd_ae\?"):
        check_optimized_metric(cfg, [])
    bare = OmegaConf.merge(cfg, {"optimized_metric": "radius"})
    check_optimized_metric(bare, ["standard"])
    with open_dict(bare):
        bare.learner, bare.evaluation = None, {"accuracy": {}}  # nothing is measured over the set
    with pytest.raises(InputError, match="this run measures"):
        check_optimized_metric(bare, ["standard"])
    for folder, patterns, prefix in (
        (whole.folder, CVAELearner.LOGGED, ""),
        (whole.folder / "models" / "adversarial", ClassificationTask.LOGGED, "adversarial-"),
    ):
        with (folder / "logs" / "metrics.csv").open() as file:
            logged = [name.removeprefix(prefix) for name in next(csv.reader(file))]
        logged = [name for name in logged if name.startswith(("train/", "val/"))]
        assert logged
        assert all(any(fnmatchcase(name, pattern) for pattern in patterns) for name in logged), logged


def test_another_configuration_keeps_the_parts_that_it_does_not_change(whole, tmp_path, monkeypatch):
    folder = tmp_path / "changed"
    shutil.copytree(whole.folder, folder)
    (folder / "DONE").unlink()
    text = (folder / "config.yaml").read_text().replace(str(whole.folder), str(folder))
    (folder / "config.yaml").write_text(text)
    fits = counted(monkeypatch, stages, "_fit")
    changed = start(folder, *SEVERAL, "models.adversarial.training_perturbation.perturbation.noise=1.5")
    assert len(fits) == 1
    assert changed.metrics["standard/accuracy/clean"] == whole.metrics["standard/accuracy/clean"]
    assert (folder / ".earlier" / "1" / "models" / "adversarial" / "checkpoints" / "last.ckpt").is_file()
    assert (folder / ".earlier" / "1" / "metrics.json").is_file()


def test_models_over_a_set_that_was_learned_before(whole, tmp_path):
    given = [o for o in SEVERAL if not o.startswith("learner")]
    again = start(tmp_path / "again", *given, "~learner", f"perturbation_set.path={whole.folder}")
    for name in ("standard", "adversarial"):
        for metric in ("accuracy/clean", "robust/full", "fit_loss"):
            assert again.metrics[f"{name}/{metric}"] == whole.metrics[f"{name}/{metric}"], (name, metric)
    with pytest.raises(InstantiationException, match="no perturbation set is named"):
        start(tmp_path / "none", *given, "~learner")
    with pytest.raises(InputError, match="a set is given and one is to be learned"):
        start(tmp_path / "both", *SEVERAL, f"perturbation_set.path={whole.folder}")


def test_what_another_process_finished_meanwhile_is_not_moved_aside(tmp_path, monkeypatch):
    """Both looked before either began; the second gets its turn when the first is done."""
    first = start(tmp_path / "run", *SET, "test=false")
    before = contents(first.folder)
    monkeypatch.setattr("latentrobust.runs.is_done", lambda *_: False)
    with pytest.raises(InputError, match="was finished by another process"):
        start(tmp_path / "run", *SET, "test=false")
    with pytest.raises(InputError, match=r"holds a finished run with seed=0, not 3:"):
        start(tmp_path / "run", *SET, "test=false", "seed=3")
    assert contents(first.folder) == before


def test_an_evaluation_does_not_hide_a_training_that_never_finished(tmp_path, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(stages, "_best_checkpoint", cut)
        with pytest.raises(CutError):
            start(tmp_path / "run", *SET)
    before = contents(tmp_path / "run")
    chosen = ["data=digits", "data/perturbation=linf", "data.test_size=4", "perturbation_set=pixel_ball", "trainer=cpu"]
    chosen += ["perturbation_set.image_shape=[1,28,28]", "callbacks.progress=null"]
    with pytest.raises(InputError, match=r"holds a training run that has not finished \(it ended with: CutError"):
        start(tmp_path / "run", *chosen, entry="evaluate")
    assert contents(tmp_path / "run") == before


def test_models_beside_a_learned_set_have_names(tmp_path):
    with pytest.raises(InputError, match=r"models\.<name>=…"):
        start(tmp_path / "run", *[option for option in SEVERAL if "models." not in option], "~models")
    assert not (tmp_path / "run").exists()


def test_a_trained_last_epoch_keeps_its_accuracy(tmp_path, monkeypatch):
    """Killed after the last epoch, before the model was stored."""
    complete = start(tmp_path / "complete", *MODEL, "test=false")
    with monkeypatch.context() as broken:
        broken.setattr(stages, "_best_checkpoint", cut)
        with pytest.raises(CutError):
            start(tmp_path / "cut", *MODEL, "test=false")
    again = start(tmp_path / "cut", *MODEL, "test=false")
    assert {"fit_accuracy", "fit_loss"} <= set(again.metrics)
    assert stable(again.folder) == stable(complete.folder)
    assert again.metrics["fit_seconds"] > 0


def test_an_evaluation_goes_on(whole, tmp_path, monkeypatch):
    chosen = [o for o in SEVERAL if o.startswith(("experiment", "data", "evaluation", "trainer.acc", "print"))]
    model = whole.folder / "models" / "adversarial"
    chosen += [f"perturbation_set.path={whole.folder}", "model=trained", f"model.path={model}", "callbacks=evaluate"]
    complete = start(tmp_path / "complete", *chosen, entry="evaluate")
    with monkeypatch.context() as broken:
        broken.setattr(measure, "model_test", cut)
        with pytest.raises(CutError):
            start(tmp_path / "cut", *chosen, entry="evaluate")
    runs = counted(monkeypatch, measure, "run_trainer")
    again = start(tmp_path / "cut", *chosen, entry="evaluate")
    assert len(runs) == 1  # the model; the set was measured
    assert stable(again.folder) == stable(complete.folder)


def test_a_lost_row_of_the_last_epoch_comes_back(tmp_path):
    """The process dies between the checkpoint of the last epoch and its row; other loggers go on where it was too."""
    tracked = [*SET, "logger=wandb", "logger.wandb.offline=true", "logger.wandb.artifacts=false"]
    run = start(tmp_path / "run", *tracked)
    log = run.folder / "logs" / "metrics.csv"
    rows = list(csv.DictReader(log.open()))
    lines = log.read_text().splitlines(keepends=True)
    last = max(number for number, row in enumerate(rows) if row["train/loss"])
    log.write_text("".join(lines[: last + 1]) + lines[last + 1][:20])
    (run.folder / "DONE").unlink()
    shutil.rmtree(run.folder / ".parts")
    part = json.dumps({"key": _key_of(run)})
    (run.folder / ".parts").mkdir()
    (run.folder / ".parts" / "set.json").write_text(part)
    again = start(tmp_path / "run", *tracked)
    found = [(row["step"], row["train/loss"]) for row in csv.DictReader(log.open()) if row["train/loss"]]
    pieces = [read_offline_run(path) for path in sorted(run.folder.rglob("*.wandb"))]
    assert len({record.run.run_id for records in pieces for record in records if record.HasField("run")}) == 1
    values, summary = ({}, {})
    for record in pieces[1]:
        values |= {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        summary |= {tuple(item.nested_key or [item.key]): item.value_json for item in record.summary.update}
    assert float(values["train/loss"]) == pytest.approx(float(rows[last]["train/loss"]))
    losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    best = json.loads(summary.get(("train/loss", "min")) or json.dumps(json.loads(summary[("train/loss",)])["min"]))
    assert best == pytest.approx(min(losses))
    assert found == [(row["step"], row["train/loss"]) for row in rows if row["train/loss"]]
    assert again.metrics["quality/pgd_ae"] == run.metrics["quality/pgd_ae"]


def _key_of(run):
    from latentrobust.configuration import resolved  # noqa: PLC0415
    from latentrobust.parts import key_of  # noqa: PLC0415

    cfg = compose_in_process("train", *SET, f"paths.output_dir={run.folder}")
    return key_of(resolved(cfg), stages.SET_KEYS)


def test_checkpoints_are_written_beside_their_target(tmp_path, monkeypatch):
    """Nothing is made in TMPDIR, not even for a moment."""
    made, real = [], tempfile.mkstemp
    monkeypatch.setattr(tempfile, "mkstemp", lambda *a, **k: made.append(k.get("dir")) or real(*a, **k))
    run = start(tmp_path / "run", *SET, "test=false")
    assert torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 1
    assert run.folder / "checkpoints" in made
    assert all(folder is not None and run.folder in (folder, *folder.parents) for folder in made)
    modes = {path.stat().st_mode & 0o777 for path in run.folder.rglob("*") if path.is_file()}
    assert modes == {0o644}


def test_a_best_checkpoint_elsewhere_is_not_followed(tmp_path):
    first = start(tmp_path / "first", *SET, "test=false")
    secret = tmp_path / "secret.ckpt"
    secret.write_text("mine")
    last = first.folder / "checkpoints" / "last.ckpt"
    stored = torch.load(last, weights_only=True)
    for state in stored["callbacks"].values():
        if "best_model_path" in state:
            state["best_model_path"] = str(secret)
    torch.save(stored, last)
    (first.folder / "checkpoints" / "best.ckpt").unlink()
    again = start(tmp_path / "again", *SET, "test=false", f"ckpt_path={last}")
    copies = [path for path in again.folder.rglob("*") if path.is_file() and path.read_bytes() == b"mine"]
    assert not copies


def test_two_runs_in_one_folder(tmp_path):
    first = begin("train", *SET, "trainer.max_epochs=3000", "paths.output_dir=run", cwd=tmp_path)
    try:
        while not (tmp_path / "run" / ".lock").is_file():
            time.sleep(0.1)
        for changed in ([], ["seed=3"]):
            second = command("train", *SET, *changed, "trainer.max_epochs=3000", "paths.output_dir=run", cwd=tmp_path)
            assert second.returncode == 2
            assert one_line(second.stderr), second.stderr
            assert f"is in use by process {first.pid}" in second.stderr
    finally:
        os.kill(first.pid, signal.SIGTERM)
        stopped = first.wait()
    assert stopped.returncode == 130, stopped.stderr
    assert "interrupted by SIGTERM" in stopped.stderr
    assert (tmp_path / "run" / "FAILED").read_text() == "interrupted by SIGTERM\n"
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_either_process_ends_both(tmp_path, rank):
    options = [*SET, "trainer=ddp", "trainer.accelerator=cpu", "trainer.max_epochs=5000", "paths.output_dir=run"]
    first = begin("train", *options, cwd=tmp_path)
    deadline = time.time() + 120
    while not (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file() and time.time() < deadline:
        time.sleep(0.1)
    children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
    os.kill(first.pid if rank == 0 else int(children[0]), signal.SIGTERM)
    asked = time.time()
    stopped = first.wait()
    assert time.time() - asked < 10
    assert stopped.returncode in (1, 130), stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert (tmp_path / "run" / "FAILED").is_file()
    while any(_runs(int(child)) for child in children):
        assert time.time() - asked < 15
        time.sleep(0.1)


def _runs(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_more_processes_than_examples_are_refused(tmp_path):
    done = command("train", *SET, "data.test_size=1", "evaluation.quality.detail=0", "trainer=ddp",
                   "trainer.accelerator=cpu", "paths.output_dir=run", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 2, done.stderr[-2000:]
    assert "data has 1 test pairs for 2 processes" in done.stderr
    assert one_line(done.stderr), done.stderr


def test_torchrun_makes_one_folder(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29517"]
    done = subprocess.run(
        [*torchrun, "-m", "latentrobust.train", *SET, "test=false", "trainer=ddp", "trainer.accelerator=cpu"],
        cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (folder,) = [path for path in (tmp_path / "outputs" / "digits" / "linf_fc").iterdir() if not path.is_symlink()]
    assert (folder / "DONE").is_file()


def test_a_terminal_without_unicode_and_a_closed_pipe_fail_nothing(tmp_path):
    shown = [option for option in SET if "progress" not in option and "print_config" not in option]
    run = f"{sys.executable} -m latentrobust.train {' '.join(shown)} report=false paths.output_dir=run | head -c 10"
    run += "; exit ${PIPESTATUS[0]}"
    environment = {**ENVIRONMENT, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = subprocess.run(
        ["bash", "-c", run], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "run" / "DONE").is_file()
    told = (tmp_path / "run" / "app.log").read_text()
    assert "training from epoch 0 to 2" in told
    assert "epoch 2 of 2: train/beta" in told
    assert "QualityTest begins" in told
    assert told.rstrip().endswith("done")


def test_groups_may_be_null(tmp_path):
    groups = ("logger", "evaluation/density", "callbacks")
    options = [option for option in SET if not option.startswith(groups)]
    nothing = [f"{group}=null" for group in groups]
    done = command("train", *options, *nothing, "trainer.max_epochs=1", "paths.output_dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    configuration = OmegaConf.load(tmp_path / "run" / "config.yaml")
    assert configuration.logger is configuration.callbacks is configuration.evaluation.density is None
    assert set(nothing) <= set(configuration.overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluation.quality.settings.draws=1.5"], "evaluation.quality.settings.draws must be a whole number"),
        (["seed=-1"], "seed must be a whole number at least 0"),
        (["learner.optimizer.lr=-1"], "learner.optimizer.lr must be a number above 0"),
        (["trainer.max_epochs=-1"], "trainer.max_epochs must be a whole number at least 1"),
        (["trainer.precision=64-true"], "trainer.precision=64-true is not offered"),
        (["data.test_size=0"], "data.test_size must be a whole number at least 1 or null"),
        (["+learner.networc=1"], "has no option networc"),
        (["callbacks.best.monitor=val/nonsense"], "monitor=val/nonsense is not logged here"),
        (["optimized_metric=quality"], "optimized_metric=quality: this run measures"),
        (["+trainer.nonsense=1"], "Trainer has no option nonsense"),
        (["callbacks.best.mode=up"], "mode"),
        (["learner.scheduler.values=[1]"], "a schedule needs as many values as epochs"),
    ],
)  # fmt: skip
def test_wrong_values_are_refused_before_any_work(tmp_path, overrides, message):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "paper.pdf").write_text("months of work")
    before = contents(tmp_path / "run")
    with pytest.raises((InputError, InstantiationException)) as error:
        start(tmp_path / "run", *SET, *overrides)
    assert message in describe_error(error.value)
    assert one_line(describe_error(error.value))
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([*SET, "callbacks.best.monitor=val/nonsense"], "monitor=val/nonsense is not logged here"),
        ([*SET, "learner.scheduler.values=[1]"], "a schedule needs as many values as epochs"),
        ([*MODEL, "task.validation_attack.steps=3", "task.validation_attack.relative_step=-1"], "relative_step"),
        ([*SEVERAL, "models.standard.callbacks.best.monitor=val/nonsense"], "monitor=val/nonsense is not logged here"),
    ],
)
def test_the_small_parts_of_a_run_are_looked_at_without_its_data(tmp_path, overrides, message):
    """So that the jobs of a sweep are, before the first one begins; networks and images are left alone."""
    nowhere = f"paths.data_dir={tmp_path / 'nowhere'}"
    check_parts(compose_in_process("train", *overrides[:-1], nowhere, f"paths.output_dir={tmp_path}"))
    with pytest.raises((InputError, InstantiationException)) as error:
        check_parts(compose_in_process("train", *overrides, nowhere, f"paths.output_dir={tmp_path}"))
    assert message in describe_error(error.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["learner=null"], "nothing to train"),
        (["task=null", "data=null"], "data=null leaves nothing to work with: choose one, such as data=digits"),
        (["evaluation=3"], "group"),
    ],
)
def test_wrong_groups_are_refused_in_one_line(tmp_path, overrides, message):
    options = [option for option in SET if not option.startswith(overrides[0].partition("=")[0])]
    done = command("train", *options, *overrides, "paths.output_dir=run", cwd=tmp_path)
    assert done.returncode == 2, done.stderr[-2000:]
    assert message in done.stderr
    assert one_line(done.stderr), done.stderr
    assert not (tmp_path / "run" / "DONE").exists()


def test_whole_numbers_may_have_exponents(tmp_path):
    run = start(tmp_path / "run", *MODEL, "evaluation.certify.n=1e2", "trainer.max_epochs=1e0", "data.test_size=1.2e1")
    assert run.metrics["certified/examples"] == 4
    same = start(tmp_path / "run", *MODEL, "trainer.max_epochs=1")
    assert same.metrics == run.metrics
    assert not same.modules  # nothing was done again


def test_what_the_third_model_lacks_is_said_before_the_first_trains(tmp_path):
    with pytest.raises(InstantiationException, match=r"select_on=robust needs a perturbation_set and a task"):
        start(tmp_path / "run", *SEVERAL, "models.adversarial.task.select_on=robust", "task.validation_attack=null")
    assert not (tmp_path / "run" / "checkpoints").exists()
