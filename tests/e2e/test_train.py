"""Training and evaluation as a user runs them, in this process."""

import csv
import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from hydra.errors import InstantiationException
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from latentrobust import load_perturbation_set
from latentrobust.data.module import PairModule
from latentrobust.errors import InputError
from latentrobust.refusals import describe_error, is_bad_input
from latentrobust.report import main as report_main
from latentrobust.runs import evaluate, train

from ..conftest import SMALL, compose_in_process

TIMES = ("_seconds",)


def stable(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["warnings"].sort()  # what is known of a stored set is said when it is loaded
    return {name: value for name, value in metrics.items() if not name.endswith(TIMES)}


def start(folder, *overrides, entry="train"):
    base = SMALL if entry == "train" else ["report=false"]
    cfg = compose_in_process(entry, *base, *overrides, f"paths.output_dir={folder}")
    return (train if entry == "train" else evaluate)(cfg)


@pytest.fixture
def run(tmp_path):
    return lambda name, *overrides, **how: start(tmp_path / name, *overrides, **how)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One plain run that many tests look at and none changes."""
    return start(tmp_path_factory.mktemp("runs") / "finished", "report=true")


def test_a_run_leaves_what_it_promises(finished):
    folder = finished.folder
    for name in ("DONE", "config.yaml", "metrics.json", "per_example.csv", "report.html", "logs/metrics.csv"):
        assert (folder / name).is_file(), name
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert sorted(p.name for p in (folder / "perturbation_set").iterdir()) == ["config.json", "model.safetensors"]
    figures = {p.stem for p in (folder / "figures").iterdir()}
    expected = {
        "pairs",
        "samples",
        "interpolations",
        "latent_norms",
        "quality",
        "quality_by_radius",
        "training",
        "coverage",
    }
    assert figures == expected
    configuration = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    assert configuration["learner"]["network"]["name"] == "mnist_fc"
    assert "${" not in (folder / "config.yaml").read_text()

    metrics = json.loads((folder / "metrics.json").read_text())
    names = [
        f"quality/{n}{s}"
        for n in ("encoder_ae", "pgd_ae", "expected_ae", "over_ae", "reconstruction")
        for s in ("", "_nll")
    ]
    names += ["quality/kl", "quality/log_likelihood", "quality/no_change", "quality/sample_to_exact", "radius"]
    names += [f"latent_norm/{n}" for n in ("mean", "std", "p25", "p50", "p75", "max")]
    names += ["quality/p50/pgd_ae", "exact/quality/pgd_ae", "fit_seconds", "test_seconds"]
    for name in names:
        assert math.isfinite(metrics[name]), name
    assert metrics.pop("warnings") == finished.warnings
    steps, judged = finished.warnings  # after one epoch of a narrow network
    assert steps.startswith("the set's 3 search steps of 0.05 times the radius do not reach across it")
    assert judged.startswith("about the set: Collapsed: the nearest point")
    assert metrics == finished.metrics
    assert metrics["exact/quality/pgd_ae"] <= 1e-6

    rows = list(csv.DictReader((folder / "per_example.csv").open()))
    assert [int(row["index"]) for row in rows] == list(range(24))
    assert {row["kind"] for row in rows} == {"linf"}
    assert np.mean([float(row["pgd_ae"]) for row in rows]) == pytest.approx(metrics["quality/pgd_ae"], rel=1e-6)

    report = (folder / "report.html").read_text()
    assert report.count("data:image/png;base64,") == 8
    assert "<script" not in report
    assert "http" not in report.split("<details>")[0].replace("http-equiv", "")


def test_the_stored_set_is_the_best_checkpoint_with_its_radius(finished):
    best = load_perturbation_set(finished.folder / "checkpoints" / "best.ckpt")
    shared = load_perturbation_set(finished.folder)
    for (name, a), (_, b) in zip(best.state_dict().items(), shared.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert best.ball == shared.ball == finished.perturbations.ball
    pairs = finished.data.pairs("validation", torch.arange(200))
    with torch.no_grad():
        norms = shared.ball.size(shared.at(pairs.x).encode(pairs.perturbed))
    assert norms.max().item() == pytest.approx(shared.ball.radius, rel=1e-5)


def test_the_same_seed_gives_the_same_metrics_and_another_seed_others(finished, run):
    again, other = run("again"), run("other", "seed=5")
    assert stable(again.folder) == stable(finished.folder)
    assert stable(other.folder) != stable(finished.folder)


@pytest.mark.parametrize("steps", [7, 20, 27])
def test_resumed_training_ends_like_an_uninterrupted_run(finished, run, steps):
    """20 steps an epoch: stopped in the first epoch, at its end, in the second."""
    first = run("first", f"trainer.max_steps={steps}", "callbacks.last.every_n_train_steps=1", "test=false",
                "callbacks.last.every_n_epochs=null")  # fmt: skip
    resumed = run("resumed", f"ckpt_path={first.folder}/checkpoints/last.ckpt")
    assert stable(resumed.folder) == stable(finished.folder)


def test_resuming_keeps_a_best_checkpoint_from_before(run):
    # The second epoch climbs instead of descending, so the best one is the first.
    explode = ["learner.scheduler.values=[1,1,-1]", "learner.scheduler.epochs=[0,1,1.01]",
               "learner.scheduler.stretch_to=null"]  # fmt: skip
    whole = run("whole", *explode)
    first = run("first", *explode, "trainer.max_steps=20", "test=false")
    resumed = run("resumed", *explode, f"ckpt_path={first.folder}/checkpoints/last.ckpt")
    assert torch.load(resumed.folder / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] == 0
    assert stable(resumed.folder) == stable(whole.folder)


def test_evaluation_repeats_the_training_run_s_own_measurement(finished, run):
    data = [o for o in SMALL if o.startswith(("experiment", "data", "evaluation", "trainer.acc", "print"))]
    again = run("evaluated", *data, f"perturbation_set.path={finished.folder}", "callbacks=evaluate", entry="evaluate")
    old, new = stable(finished.folder), stable(again.folder)
    assert {name: old[name] for name in new} == new
    wider = run("wider", *data, f"perturbation_set.path={finished.folder}", "perturbation_set.radius=50",
                "callbacks=evaluate", entry="evaluate")  # fmt: skip
    assert wider.metrics["radius"] == 50
    assert wider.metrics["quality/over_ae"] > new["quality/over_ae"]


def test_batch_size_does_not_change_the_evaluation(finished, run):
    data = [o for o in SMALL if o.startswith(("experiment", "data", "evaluation", "trainer.acc", "print"))]
    path = f"perturbation_set.path={finished.folder}"
    one, two = (
        run(f"batch{size}", *data, path, f"data.batch_size={size}", "callbacks=evaluate", entry="evaluate").metrics
        for size in (24, 7)
    )
    for name in one:
        if not name.endswith(TIMES):
            assert one[name] == pytest.approx(two[name], rel=1e-4), name


def test_exact_sets_are_evaluated_by_the_same_code(run):
    found = run(
        "exact", "data=digits", "data.test_size=16", "perturbation_set=rts", "evaluation.quality.settings.steps=3",
        "evaluation.quality.detail=0", "trainer=cpu", "print_config=false", entry="evaluate",
    ).metrics  # fmt: skip
    assert found["quality/encoder_ae"] <= 1e-6
    assert found["quality/pgd_ae"] <= 1e-6
    assert "quality/kl" not in found


@pytest.mark.parametrize("mode", ["fdr", "overfit", "limit", "profiler"])
def test_debug_modes_run(run, mode):
    finished = run(mode, f"debug={mode}")
    assert (finished.folder / "DONE").is_file()


def test_overfitting_three_batches_lowers_the_loss(run):
    finished = run("overfit", "debug=overfit", "learner.scheduler.values=[1,1,1,1]", "learner.optimizer.lr=0.05")
    rows = csv.DictReader((finished.folder / "logs" / "metrics.csv").open())
    losses = [float(row["train/reconstruction"]) for row in rows if row["train/reconstruction"]]
    assert losses[-1] < 0.9 * losses[0]
    loader = finished.data.train_dataloader()
    first, second = ([(b.examples.tolist(), b.epoch) for b in loader] for _ in range(2))
    assert first == second


def test_tensorboard_shows_what_a_run_ends_with(run):
    finished = run("tb", "logger=tensorboard", "report=true")
    board = EventAccumulator(str(finished.folder / "tensorboard"), {"images": 0, "tensors": 0, "scalars": 0})
    board.Reload()
    tags = board.Tags()
    assert {"train/loss", "val/loss", "quality/pgd_ae", "radius"} <= set(tags["scalars"])
    final = [event for event in board.Scalars("quality/pgd_ae") if event.step]
    assert final[-1].value == pytest.approx(finished.metrics["quality/pgd_ae"], rel=1e-5)
    assert len(board.Images("val/draws")) == 2  # at every validation
    figures = {path.stem for path in (finished.folder / "figures").iterdir()}
    assert figures | {"val/reconstructions", "val/draws", "examples/x", "examples/x perturbed"} == set(tags["images"])
    (shown,) = board.Images("examples/x")  # 24 test digits, in three rows
    assert (shown.width, shown.height) == (8 * 28, 3 * 28)
    assert "examples/text_summary" in tags["tensors"]
    assert any("hparams" in name for name in board.summary_metadata)  # runs compare by final metrics
    assert "hp_metric" not in tags["scalars"]


def test_trackio_shows_what_a_run_ends_with(run):
    storage = pytest.importorskip("trackio.sqlite_storage").SQLiteStorage
    finished = run(
        "trackio", "report=true", "logger=trackio", "logger.trackio.project=e2e", "logger.trackio.name=a/run"
    )
    rows = storage.get_logs("e2e", "a-run")
    kinds = {name: value["_type"] for row in rows for name, value in row.items() if isinstance(value, dict)}
    assert sum("val/draws" in row for row in rows) == 2
    assert {f"figures/{path.stem}" for path in (finished.folder / "figures").iterdir()} <= set(kinds)
    assert (kinds["examples"], kinds["latent_norm/histogram"]) == ("trackio.table", "trackio.histogram")
    (final,) = [row for row in rows if "quality/pgd_ae" in row]
    assert final["quality/pgd_ae"] == finished.metrics["quality/pgd_ae"]
    assert final["step"] == max(row["step"] for row in rows) == finished.metrics["steps"]
    assert storage.get_run_config("e2e", "a-run")["learner"]["network"]["latent"] == 6


def test_no_logger(run):
    assert not (run("none", "logger=none").folder / "logs").exists()


def test_a_report_is_made_again_from_the_run_s_folder_alone(finished, tmp_path, capsys, monkeypatch):
    def gone(*_):
        raise AssertionError("the data is asked for")

    monkeypatch.setattr(PairModule, "__init__", gone)
    moved = tmp_path / "moved"
    shutil.copytree(finished.folder, moved)
    before = (moved / "report.html").read_text()
    pictures = {path.name: path.read_bytes() for path in (moved / "figures").iterdir()}
    (moved / "report.html").unlink()
    shutil.rmtree(moved / "figures")
    report_main([str(moved)])
    assert f"report: {moved}/report.html" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in (moved / "figures").iterdir()} == pictures
    made_at = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d \w+")
    assert made_at.sub("", (moved / "report.html").read_text()) == made_at.sub("", before)
    (moved / ".parts" / "quality.json").unlink()
    with pytest.raises(SystemExit) as stopped:
        report_main([str(moved)])
    assert stopped.value.code == 2
    assert "has not kept what it found" in capsys.readouterr().err


def test_a_run_without_a_report_can_have_one_later(run, finished, capsys):
    numbers = run("numbers", "report=false").folder
    assert f"report: python -m latentrobust.report {numbers}\n" in capsys.readouterr().out
    assert (numbers / "DONE").is_file()
    assert stable(numbers) == stable(finished.folder)
    assert not (numbers / "report.html").exists()
    assert not (numbers / "figures").exists()
    report_main([str(numbers)])
    pictures = {path.name: path.read_bytes() for path in (finished.folder / "figures").iterdir()}
    assert {path.name: path.read_bytes() for path in (numbers / "figures").iterdir()} == pictures
    assert (numbers / "report.html").is_file()


def test_a_bring_your_own_network_trains(run, monkeypatch, tmp_path):
    (tmp_path / "their_networks.py").write_text(
        "from latentrobust.networks.cvae.mnist_fc import mnist_fc\n"
        "def narrow():\n    return mnist_fc((1, 28, 28), hidden=8, latent=3)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    finished = run("own", "~learner.network", "+learner.network._target_=their_networks.narrow")
    assert finished.perturbations.ball.shape == (3,)
    with pytest.raises(InputError, match=r"pass it as network= .*\+perturbation_set.network._target_=their_networks"):
        load_perturbation_set(finished.folder)
    assert run("own", "~learner.network", "+learner.network._target_=their_networks.narrow").modules == [], "it is done"
    cfg = compose_in_process(
        "evaluate", "data=digits", "data/perturbation=linf", "data.test_size=8", "print_config=false",
        "evaluation.quality.detail=0", "evaluation.quality.settings.steps=1", f"paths.output_dir={tmp_path}/again",
        f"perturbation_set.path={finished.folder}", "+perturbation_set.network._target_=their_networks.narrow",
        "callbacks.progress=null",
    )  # fmt: skip
    with pytest.warns(UserWarning, match="do not reach"):
        assert evaluate(cfg).perturbations.ball == finished.perturbations.ball


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.validation=5000"], "leaves nothing"),
        (
            ["data/perturbation=rts", "evaluation/quality=default"],
            r"images \[1, 42, 42\], the network is for \[1, 28, 28\]",
        ),
        (["trainer.precision=16-mixed"], "hundreds of times slower"),
        (["evaluation.quality.settings.draws=0"], "draws must be a whole number at least 1, got 0"),
        (["trainer.strategy=ddp_spawn"], "use ddp"),
        (["ckpt_path=nowhere.ckpt"], "no checkpoint at nowhere.ckpt"),
    ],
)
def test_bad_input_stops_with_one_line_and_marks_the_run(run, tmp_path, overrides, message):
    with pytest.raises((InputError, InstantiationException), match=message) as error:
        run("bad", *overrides)
    assert is_bad_input(error.value)
    assert "\n" not in describe_error(error.value)
    assert not (tmp_path / "bad" / "DONE").exists()
    assert not (tmp_path / "bad" / "metrics.json").exists()


def test_a_checkpoint_of_something_else_is_refused(run, tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "x.ckpt")
    with pytest.raises(InputError, match="another model"):
        run("other", f"ckpt_path={tmp_path}/x.ckpt")


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_folder_is_not_overwritten(run, capsys):
    first = run("again")
    before = contents(first.folder)
    for changed in (["data.validation=5000"], ["seed=3"], ["learner.optimizer.lr=1e-3", "data.batch_size=0"]):
        with pytest.raises((InputError, InstantiationException), match=r"finished run with|batch_size"):
            run("again", *changed)
        assert contents(first.folder) == before
    capsys.readouterr()
    same = run("again", "print_config=true")  # which changes no result
    assert "nothing to do" in capsys.readouterr().out
    assert contents(first.folder) == before
    assert same.metrics == first.metrics
    x = torch.rand(2, *same.perturbations.image_shape)
    u = torch.zeros(2, *same.perturbations.ball.shape)
    assert torch.equal(same.perturbations.at(x).decode(u), first.perturbations.at(x).decode(u))


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("evaluation/robust=autoattack", "evaluation/robust=autoattack is about a model, and nothing here trains one"),
        ("objective=trades", "objective=trades is about a model"),
    ],
)
def test_what_is_about_models_is_refused_where_a_set_is_learned(run, said, told):
    with pytest.raises(InputError, match=re.escape(told)):
        run("refused", said)


def test_an_evaluation_of_models_is_refused_where_a_set_is_learned(tmp_path):
    cfg = compose_in_process(
        "train", "experiment=digits/rts", "evaluation=model", "print_config=false", "callbacks.progress=null",
        f"paths.output_dir={tmp_path}/refused",
    )  # fmt: skip
    with pytest.raises(InputError, match="measures models, and there is none: choose evaluation=set, or test=false"):
        train(cfg)


def test_overwriting_moves_the_earlier_run_aside(run, finished):
    first = run("again")
    before = contents(first.folder)
    second = run("again", "seed=3", "trainer.check_val_every_n_epoch=10", "paths.overwrite=true")  # it never validates
    assert contents(second.folder / ".earlier" / "1") == before
    assert stable(second.folder) != stable(finished.folder)
    assert sorted(path.name for path in (second.folder / "checkpoints").iterdir()) == ["last.ckpt"]


def test_a_run_without_any_validation_has_a_last_checkpoint_of_its_last_epoch(run):
    done = run("rare", "trainer.check_val_every_n_epoch=10", "trainer.max_epochs=3", "test=false")
    assert torch.load(done.folder / "checkpoints" / "last.ckpt")["epoch"] == 2
    rarely = run("rarely", "trainer.check_val_every_n_epoch=2", "trainer.max_epochs=3", "test=false")
    assert torch.load(rarely.folder / "checkpoints" / "last.ckpt")["epoch"] == 2


def test_files_that_no_run_left_are_not_touched(run, tmp_path):
    folder = tmp_path / "project"
    (folder / "figures").mkdir(parents=True)
    (folder / "figures" / "paper.pdf").write_bytes(b"months of work")
    (folder / "config.yaml").write_text("mine: true\n")
    before = contents(folder)
    for changed in ([], ["data.batch_size=0"], ["paths.overwrite=true"]):
        with pytest.raises((InputError, InstantiationException), match=r"no run has left|batch_size"):
            run("project", *changed)
        assert contents(folder) == before


def test_resuming_in_the_same_folder_keeps_what_was_logged(run):
    stretch = ["learner.scheduler.stretch_to=3", "learner.beta.stretch_to=3", "test=false"]
    whole = run("whole", "trainer.max_epochs=3", "test=false")
    part = run("part", "trainer.max_epochs=1", *stretch)
    (part.folder / "DONE").unlink()  # as if it had been killed
    again = run("part", "trainer.max_epochs=3", "test=false", f"ckpt_path={part.folder}/checkpoints/last.ckpt")

    def logged(folder, name):
        rows = csv.DictReader((folder / "logs" / "metrics.csv").open())
        return [(row["step"], row[name]) for row in rows if row[name]]

    assert logged(again.folder, "train/loss") == logged(whole.folder, "train/loss")
    assert len(logged(again.folder, "train/loss")) == 3
    steps = [[step for step, _ in logged(folder, "val/loss")] for folder in (again.folder, whole.folder)]
    assert steps[0] == steps[1]


def test_measuring_in_the_folder_of_a_training_keeps_its_logs(run):
    trained = run("kept", "test=false", "trainer.max_epochs=1")
    before = (trained.folder / "logs" / "metrics.csv").read_text().splitlines()
    chosen = ["data=digits", "data/perturbation=linf", "data.test_size=4", "perturbation_set=trained", "trainer=cpu"]
    run("kept", *chosen, f"perturbation_set.path={trained.folder}", "paths.overwrite=true", entry="evaluate")
    rows = list(csv.DictReader((trained.folder / "logs" / "metrics.csv").open()))
    assert len(rows) == len(before)  # a header less, a row of results more
    assert sum(bool(row["train/loss"]) for row in rows) == 1


def test_final_values_stand_behind_the_last_step(finished):
    rows = list(csv.DictReader((finished.folder / "logs" / "metrics.csv").open()))
    final = [row for row in rows if row["quality/pgd_ae"]]
    assert [int(row["step"]) for row in final] == [int(finished.metrics["steps"])]
    assert int(final[0]["step"]) > max(int(row["step"]) for row in rows if row["train/loss"])


def test_gradient_clipping_works_in_both_precisions(run):
    for precision in ("32-true", "bf16-mixed"):
        run(precision, "trainer.gradient_clip_val=0.5", f"trainer.precision={precision}", "test=false")


@pytest.mark.parametrize("limit", [1.0, 7])
def test_resuming_after_a_whole_epoch(run, limit):
    """Lightning restores no loader state then, also not the number of the epoch."""
    limited = [f"trainer.limit_train_batches={limit}", "test=false"]
    stretch = ["learner.scheduler.stretch_to=3", "learner.beta.stretch_to=3"]
    whole = run("whole", *limited, "trainer.max_epochs=3")
    first = run("first", *limited, "trainer.max_epochs=1", *stretch)
    resumed = run("resumed", *limited, "trainer.max_epochs=3", f"ckpt_path={first.folder}/checkpoints/last.ckpt")
    for (name, a), (_, b) in zip(
        whole.modules[0].state_dict().items(), resumed.modules[0].state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name


def test_a_checkpoint_of_another_model_is_refused(finished, run):
    with pytest.raises(InputError, match="another model"):
        run("other", f"ckpt_path={finished.folder}/checkpoints/last.ckpt", "learner.network.hidden=8")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_bf16_on_a_gpu(run):
    finished = run("gpu", "trainer=gpu_bf16", "trainer.max_epochs=2")
    assert math.isfinite(finished.metrics["quality/pgd_ae"])


def test_bf16_on_the_cpu_stays_close_to_float32(finished, run):
    bf16 = run("bf16", "trainer.precision=bf16-mixed")
    assert bf16.metrics["quality/reconstruction"] == pytest.approx(finished.metrics["quality/reconstruction"], rel=0.1)


def test_a_set_is_restricted_to_the_latents_that_do_something(tmp_path, capsys):
    options = [
        "experiment=digits/rts", "learner/network=warp", "learner.network.latent=12", "learner.optimizer.lr=3e-3",
        "learner.latents=active", "learner.beta.values=[0,5,5,5]", "trainer.max_epochs=6", "data.batch_size=32",
        "trainer.check_val_every_n_epoch=3", "trainer.limit_train_batches=25", "data.test_size=8", "data.validation=64",
        "evaluation.quality.settings.steps=2", "evaluation.quality.detail=2", "print_config=false",
        "callbacks.progress=null", "trainer.accelerator=cpu", f"paths.output_dir={tmp_path}",
    ]  # fmt: skip
    finished = train(compose_in_process("train", *options))
    stored = load_perturbation_set(tmp_path)
    assert stored.active is not None
    assert 1 <= len(stored.active) < 12
    assert f"learner.latents=active: {len(stored.active)} of 12 latents kept" in capsys.readouterr().out
    assert stored.ball.radius == stored.latent_norms["max"] == finished.metrics["radius"]
    assert finished.metrics["quality/kl"] > 0
