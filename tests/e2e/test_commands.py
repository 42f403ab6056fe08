"""The commands as a user types them, in processes of their own."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from latentrobust import dashboard
from latentrobust.configuration import CONF, stored
from latentrobust.sweeping.jobs import fingerprint

from ..conftest import SMALL, compose_in_process
from .warm import started, warm

TINY = [*SMALL, "trainer.max_epochs=1", "trainer.limit_train_batches=2", "data.test_size=8"]
ENVIRONMENT = {**os.environ, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}


def command(module, *arguments, cwd, **environment):
    return warm(module, arguments, cwd, {**ENVIRONMENT, **environment})


def begin(module, *arguments, cwd, **environment):
    return started(module, arguments, cwd, {**ENVIRONMENT, **environment})


def one_line(text):
    return len(text.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("train", ["experiment=nonsense"], "there is no experiment=nonsense; there are demo, "),
        ("train", ["experiment=digits/rst"], "did you mean experiment=digits/rts?"),
        ("train", ["model=resnt18"], "did you mean model=resnet18?"),
        ("train", ["no.such.option=1"], "there is no option no.such.option"),
        ("train", ["learner.lr=1"], "there is no option learner.lr; did you mean learner.optimizer.lr?"),
        ("evaluate", ["data.batchsize=1"], "did you mean data.batch_size?"),
        ("train", ["ckpt=1"], "did you mean ckpt_path?"),
        ("train", ["experimnt=digits/rts"], "did you mean experiment?"),
        ("train", ["evaluation.robust.examples=1"], "evaluation/robust=default adds its options"),
        ("train", ["data.resident=false"], "FormulaPairs has no option resident; there are source, "),
        ("train", ["-m", "learner=cvae,foo"], "there is no learner=foo"),
        ("train", [*TINY, "+resume=true"], "there is no option resume: +resume=true would change nothing"),
        ("train", [*TINY, "+mine.trainer.max_epochs=1"], "+mine.trainer.max_epochs=1 would change nothing"),
        ("train", ["trainer.accumulate_grad_batches=2"], "+trainer.accumulate_grad_batches=… adds it"),
        ("train", ["paths.output_dir="], "paths.output_dir is empty: name a folder"),
        ("train", [*TINY, "learner.likelihood=poisson"], "poisson"),
        (
            "train",
            [*TINY, "trainer.precision=bf16-mixed", "trainer.gradient_clip_val=1", "learner.optimizer.fused=true"],
            "clipped",
        ),
        ("train", [*TINY, "data=mnist", "data.source.download=false", "paths.data_dir=nowhere"], "is missing"),
        ("train", [*TINY, "paths.output_dir=/proc/nowhere"], "/proc/nowhere"),
        ("evaluate", ["data=digits"], "perturbation_set.path"),
        ("evaluate", ["perturbation_set.path=nowhere"], "no perturbation set at nowhere"),
        ("evaluate", ["perturbation_set=rts", "perturbation_set.radius=-1"], "radius"),
    ],
)
def test_bad_input_exits_with_2_and_one_line(tmp_path, module, arguments, message):
    done = command(module, *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert one_line(done.stderr), done.stderr
    assert not list(tmp_path.iterdir())


def test_what_was_refused_takes_nothing_of_an_earlier_run_along(tmp_path):
    earlier = tmp_path / "outputs" / "digits" / "rts" / "2024-01-02_03-04-05-678901"
    earlier.mkdir(parents=True)
    for name in ("app.log", "config.yaml", "FAILED"):
        (earlier / name).write_text("of before")
    (tmp_path / "outputs" / "evaluate").mkdir()
    named = command("train", *TINY, "learner.likelihood=poisson", f"paths.output_dir={earlier}", cwd=tmp_path)
    other = command("train", *TINY, "learner.likelihood=poisson", cwd=tmp_path)
    assert (named.returncode, other.returncode) == (2, 2)
    assert {path.name for path in earlier.iterdir()} >= {"app.log", "config.yaml", "FAILED"}
    assert [path.name for path in earlier.parent.iterdir()] == [earlier.name]
    here = command(
        "train", *TINY, "learner.likelihood=poisson", "paths.output_dir=.", cwd=tmp_path / "outputs" / "evaluate"
    )
    assert here.returncode == 2
    assert "poisson" in here.stderr  # the folder that one stands in is there still


@pytest.mark.parametrize(("name", "kept"), [("mine", {"accuracy"}), ("more", {"quality"})])
def test_an_evaluation_of_the_user_s_own_leaves_out_what_it_does_not_have(tmp_path, name, kept):
    place = tmp_path / "own" / "evaluation"
    place.mkdir(parents=True)
    (place / "mine.yaml").write_text((CONF / "evaluation" / "accuracy_only.yaml").read_text())
    (place / "more.yaml").write_text("defaults: [set, _self_]\n")  # the same in a checkout's own conf/ is read so too
    options = ["--config-dir", "own", "experiment=demo", f"evaluation={name}", "--cfg", "job", "-p", "evaluation"]
    shown = OmegaConf.create(command("train", *options, cwd=tmp_path).stdout)
    parts = ("quality", "density", "accuracy", "robust", "certify")
    assert {part for part in parts if shown.get(part) is not None} == kept


def test_a_logger_may_be_left_out(tmp_path):
    done = command(
        "train", *TINY, "logger.csv=null", "test=false", f"paths.output_dir={tmp_path / 'run'}", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "DONE").is_file()
    assert not (tmp_path / "run" / "logs").exists()


def test_an_output_folder_without_space_stops_with_one_line(tmp_path):
    """A file-size limit stands in for a full disk: every write past it fails."""
    run = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "from latentrobust.train import main\nmain()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", run, *TINY], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert one_line(done.stderr), done.stderr
    assert not list(tmp_path.rglob("DONE"))


def test_without_a_terminal_lines_say_how_far_a_training_is(tmp_path):
    shown = [option for option in TINY if "progress" not in option and "print_config" not in option]
    done = command("train", *shown, "trainer.max_epochs=2", "test=false", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("digits/linf_fc in ")
    assert any(line.endswith("learner.network.hidden: 16") for line in lines)
    assert not any(line.strip().startswith("_target_") for line in lines)  # the rest is in config.yaml
    epochs = [line for line in lines if line.startswith("set: epoch ")]
    assert re.fullmatch(
        r"set: epoch 1 of 2, about 0:\d\d left: .*train/loss [\d.e+]+, .*val/loss [\d.e+]+.*", epochs[0]
    )
    assert epochs[1].startswith("set: epoch 2 of 2: ")
    # The newest run of a name can be called so.
    (run,) = [path for path in (tmp_path / "outputs/digits/linf_fc").iterdir() if not path.is_symlink()]
    latest = tmp_path / "outputs/digits/linf_fc/latest"
    assert latest.is_symlink()
    assert latest.resolve() == run
    again = command("train", *TINY, "test=false", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert latest.resolve() not in (run, latest)


def test_resolved_configuration_can_be_printed(tmp_path):
    shown = command(
        "train", "--cfg", "job", "experiment=demo", "optimizer@task.optimizer=sgd", "evaluation=accuracy_only",
        "logger=null", cwd=tmp_path,
    )  # fmt: skip
    shown = OmegaConf.create(shown.stdout)  # as it would run
    assert (shown.task.optimizer.lr, shown.evaluation.quality, shown.logger) == (0.1, None, None)
    done = command("train", "--cfg", "job", "--resolve", "experiment=mnist/rts/paper", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "epochs:" in done.stdout
    assert "${" not in done.stdout


def read_offline_run(file):
    """Records of a W&B offline run file: the level-db log format under a 7-byte header."""
    import struct  # noqa: PLC0415

    from wandb.proto import wandb_internal_pb2  # noqa: PLC0415

    raw, position, block, parts, records = file.read_bytes(), 7, 32768, b"", []
    assert raw.startswith(b":W&B")
    while position + 7 <= len(raw):
        left = block - position % block
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", raw[position : position + 7])
        parts += raw[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            records.append(wandb_internal_pb2.Record.FromString(parts))
            parts = b""
    return records


def test_a_sweep_gives_complete_folders_separate_runs_and_one_table(tmp_path):
    done = command(
        "train", "-m", *TINY, "seed=1,2", "logger=wandb", "report=true", "paths.output_dir=sweep", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the sweep is in sweep; python -m latentrobust.report sweep ") == 1
    sweep = tmp_path / "sweep"
    for job in "01":
        for name in ("DONE", "config.yaml", "metrics.json", "report.html", "perturbation_set/config.json"):
            assert (sweep / job / name).is_file(), name
    rows = list(csv.DictReader((sweep / "sweep.csv").open()))
    assert [row["state"] for row in rows] == ["DONE", "DONE"]
    assert ["seed=1" in row["overrides"] for row in rows] == [True, False]
    assert rows[0]["quality/pgd_ae"] != rows[1]["quality/pgd_ae"]

    files = sorted(sweep.rglob("*.wandb"))
    assert len(files) == 2
    found = [read_offline_run(file) for file in files]
    runs = [next(record.run for record in records if record.HasField("run")) for records in found]
    assert runs[0].run_id != runs[1].run_id
    assert {run.run_group for run in runs} == {"sweep"}
    assert {run.job_type for run in runs} == {"train"}
    for records, job in zip(found, "01", strict=True):
        summary = {}
        for record in records:
            for item in record.summary.update:
                summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        metrics = json.loads((sweep / job / "metrics.json").read_text())
        assert summary["quality/pgd_ae"] == pytest.approx(metrics["quality/pgd_ae"])
        assert summary["trainer/global_step"] == metrics["steps"]  # final values, right of their curves
        assert runs[int(job)].display_name.startswith("digits/linf_fc: ")
        assert f"seed={int(job) + 1}, and " in runs[int(job)].display_name
        # The x axis of every curve is the training step, and its best value stands beside the last one.
        defined = {record.metric.name or record.metric.glob_name: record.metric for record in records
                   if record.HasField("metric")}  # fmt: skip
        assert "trainer/global_step" in defined
        assert "*" in defined
        assert defined["val/loss"].summary.min
        assert defined["val/loss"].summary.last
        shown = {}
        for record in records:
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            for name in items:
                shown.setdefault(name, []).append(int(items["trainer/global_step"]))
        for name in ("figures/samples/path", "tables/quality/path", "examples/path", "report/path"):
            assert shown[name] == [metrics["steps"]], name
        for section, panels in (*dashboard.LINES.items(), *dashboard.BARS.items()):
            if section in ("Learning a set", "The set"):
                assert all(key in shown for _, keys in panels for key in keys), section
        # Of one validation, at the step that its values stand at.
        assert shown["val/draws/path"] == shown["val/reconstructions/path"] == shown["val/loss"]
        artifacts = {record.artifact.type: record.artifact for record in records if record.HasField("artifact")}
        assert len(artifacts["perturbation_set"].manifest.contents) == 2
        assert json.loads(artifacts["perturbation_set"].metadata)["radius"] == pytest.approx(metrics["radius"])
        assert len(artifacts["report"].manifest.contents) == 4


def test_a_metric_that_no_job_will_have_is_refused_before_the_first_one(tmp_path):
    options = ["-m", *TINY, "seed=1,2", "optimized_metric=robust/full", "paths.output_dir=sweep"]
    done = command("train", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert "optimized_metric=robust/full: this run measures" in done.stderr
    assert one_line(done.stderr)
    assert not (tmp_path / "sweep" / "0").exists()


def test_a_failed_job_of_a_sweep_is_named_at_once_and_marked(tmp_path):
    done = command("train", "-m", *TINY, "data.validation=200,5000", "paths.output_dir=sweep", cwd=tmp_path)
    assert done.returncode == 1  # not 2, which would say that nothing was done
    assert "job 1 failed: data.validation=5000 leaves nothing" in done.stderr
    assert (tmp_path / "sweep" / "0" / "DONE").is_file()
    assert "leaves nothing" in (tmp_path / "sweep" / "1" / "FAILED").read_text()
    states = [row["state"] for row in csv.DictReader((tmp_path / "sweep" / "sweep.csv").open())]
    assert states == ["DONE", "FAILED"]


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "ray"])
def test_workers_do_what_one_process_does(tmp_path, launcher):
    """The same table; and the sweep has the list that it began with."""
    pytest.importorskip(launcher.partition("_")[0])
    options = [*TINY, "seed=1,2", "test=false", "logger=null"]
    done = command("train", "-m", *options, "paths.output_dir=sweep", f"launcher={launcher}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 jobs done" in done.stdout
    if launcher != "submitit_local":
        alone = command("train", "-m", *options, "paths.output_dir=alone", cwd=tmp_path)
        assert alone.returncode == 0, alone.stderr
        tables = [list(csv.DictReader((tmp_path / name / "sweep.csv").open())) for name in ("sweep", "alone")]
        for rows in zip(*tables, strict=True):
            for row in rows:
                del row["overrides"], row["fit_seconds"]
            assert rows[0] == rows[1]
        other = command("train", "-m", *options[:-3], "seed=1,3", *options[-2:], "paths.output_dir=sweep", cwd=tmp_path)
        assert other.returncode == 2
        assert "another sweep: the configuration of job 1 had seed=2, not seed=3" in other.stderr
        assert one_line(other.stderr)
        assert (tmp_path / "sweep" / "1" / "DONE").is_file()


def test_what_slurm_refuses_leaves_nothing(tmp_path):
    for name in ("sbatch", "srun"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(
            "#!/bin/sh\necho 'sbatch: error: Invalid generic resource (gres) specification' >&2\nexit 1\n"
        )
        program.chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    options = ["seed=1,2", "launcher=submitit_slurm", "paths.output_dir=sweep"]
    refused = command("train", "-m", *TINY, *options, cwd=tmp_path, PATH=path)
    assert refused.returncode == 2
    assert "launcher.options.gpus_per_node=null asks for no GPU" in refused.stderr
    assert not (tmp_path / "sweep").exists()


def test_a_sweep_s_file_says_what_is_varied(tmp_path):
    sweep = ["train", "-m", "+sweep=figure_2", "from=flow", "launcher=manual"]
    assert command(*sweep, f"paths.output_dir={tmp_path}/sweep", cwd=tmp_path).returncode == 0
    jobs = json.loads((tmp_path / "sweep" / "jobs.json").read_text())["jobs"]
    methods, sizes = ("standard", "randomized_la", "adversarial_la"), (600, 2400, 6000, 50_000)
    assert [job["overrides"][:4] for job in jobs] == [
        ["experiment=fashion_mnist/model", f"method={method}", f"data.train_size={size}", f"seed={seed}"]
        for method in methods
        for size in sizes
        for seed in (1, 2, 3)
    ]
    assert len({job["fingerprint"] for job in jobs}) == 36
    # The command line wins over the file.
    assert command(*sweep, "seed=7", "data.train_size=600,2400", cwd=tmp_path).returncode == 0
    (listed,) = (tmp_path / "outputs" / "sweeps" / "figure_2").glob("*/jobs.json")
    jobs = json.loads(listed.read_text())["jobs"]
    assert [{"seed=7", f"data.train_size={size}"} <= set(job["overrides"]) for job in jobs for size in (600, 2400)] == [
        True, False, False, True,
    ] * 3  # fmt: skip


def test_a_sweep_over_what_names_its_folder_is_one_folder(tmp_path):
    """Whose name is that of the experiment as the command begins, whatever its jobs make of it."""
    chosen = ["scheduler@learner.scheduler=constant", "callbacks.last.every_n_epochs=2"]
    done = command("train", "-m", *TINY, "test=false", "name=a,b", *chosen, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for job in tmp_path.rglob("config.yaml"):
        assert list(OmegaConf.load(job).learner.scheduler["values"]) == [1]
    (listed,) = tmp_path.rglob("jobs.json")
    assert [path.parent for path in tmp_path.rglob("sweep.csv")] == [listed.parent]
    assert {path.parent.name for path in listed.parent.rglob("DONE")} == {"0", "1"}
    status = command("sweep", "status", str(listed.parent), cwd=tmp_path)
    assert "2 jobs: 2 done" in status.stdout, status.stdout + status.stderr


@pytest.mark.parametrize(
    ("said", "every"),
    [
        (["experiment=demo", "callbacks.last.every_n_epochs=3", "evaluation/robust=paper", "seed=1,2"], 3),
        (["experiment=demo", "evaluation=model,accuracy_only", "logger=null",
          "scheduler@task.scheduler=piecewise_linear", "task.scheduler.stretch_to=${trainer.max_epochs}"], 1),
    ],
)  # fmt: skip
def test_a_sweep_s_list_is_of_the_configurations_that_its_jobs_have(tmp_path, said, every):
    assert command("train", "-m", *said, "launcher=manual", "paths.output_dir=sweep", cwd=tmp_path).returncode == 0
    for job in json.loads((tmp_path / "sweep" / "jobs.json").read_text())["jobs"]:
        overrides = job["overrides"]
        cfg = compose_in_process("train", *overrides, f"paths.output_dir={tmp_path}/sweep/{job['number']}")
        kept = stored(cfg)
        assert kept["models"]["standard"]["callbacks"]["last"]["every_n_epochs"] == every
        assert fingerprint(kept) == job["fingerprint"]


def test_own_defaults_that_change_nothing_are_refused(tmp_path):
    (tmp_path / "mine" / "local").mkdir(parents=True)
    (tmp_path / "mine" / "local" / "default.yaml").write_text("trainer: {max_epochs: 1}\n")
    done = command("train", "--config-dir", "mine", *TINY, cwd=tmp_path)
    assert done.returncode == 2
    assert one_line(done.stderr)
    assert "its first line has to be # @package _global_" in done.stderr


def test_a_list_alone_is_for_whoever_works_on_it(tmp_path):
    """Wherever that is: jobs run where the list was made, with the configurations that were given there."""
    (tmp_path / "mine" / "local").mkdir(parents=True)
    (tmp_path / "mine" / "local" / "default.yaml").write_text("# @package _global_\ntags: [mine]\n")
    (tmp_path / "elsewhere").mkdir()
    sweep = [*TINY, "test=false", "seed=1,2", "paths.output_dir=sweep", "launcher=manual"]
    listed = command("train", "--config-dir", "mine", "-m", *sweep, cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert "2 jobs in sweep" in listed.stdout
    assert not (tmp_path / "sweep" / "0").exists()
    worked = command("sweep", "work", "../sweep", cwd=tmp_path / "elsewhere")
    assert worked.returncode == 0, worked.stderr
    assert "2 jobs: 2 done" in worked.stdout
    assert list(OmegaConf.load(tmp_path / "sweep" / "1" / "config.yaml").tags) == ["mine"]
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_sweep_that_leaves_a_group_out_in_some_jobs_is_refused(tmp_path):
    done = command("train", "-m", *TINY, "evaluation=null,set", "paths.output_dir=sweep", cwd=tmp_path)
    assert done.returncode == 2
    assert one_line(done.stderr)
    assert "evaluation=null among the values of a sweep" in done.stderr
    assert not (tmp_path / "sweep").exists()


def test_a_sweep_with_a_wrong_value_begins_no_job(tmp_path):
    done = command("train", "-m", *TINY, "trainer.max_epochs=1,none", "paths.output_dir=sweep", cwd=tmp_path)
    assert done.returncode == 2
    assert "must be a finite number or null, got 'none'" in done.stderr
    assert not (tmp_path / "sweep" / "0").exists()
    slurm = command(
        "train", "-m", *TINY, "seed=1,2", "launcher=submitit_slurm", "paths.output_dir=sweep", cwd=tmp_path, PATH=""
    )
    assert slurm.returncode == 2
    assert "there is no sbatch here" in slurm.stderr
    assert not (tmp_path / "sweep" / "jobs.json").exists()
    idle = command("train", "-m", *TINY, "seed=1,2", "launcher.workers=4", "paths.output_dir=sweep", cwd=tmp_path)
    assert idle.returncode == 2
    assert "launcher=basic runs one job after the other" in idle.stderr
    single = command("train", *TINY, "launcher=joblib", "paths.output_dir=single", cwd=tmp_path)
    assert single.returncode == 2
    assert "launcher=joblib starts the jobs of a sweep, and this is a single run" in single.stderr


def test_interrupting_marks_the_run_and_keeps_the_last_checkpoint(tmp_path):
    folder = tmp_path / "run"
    running = begin("train", *SMALL, "trainer.max_epochs=5000", f"paths.output_dir={folder}", cwd=tmp_path)
    deadline = time.time() + 120
    while not (folder / "checkpoints" / "last.ckpt").is_file() and time.time() < deadline:
        time.sleep(0.2)
    os.kill(running.pid, signal.SIGINT)
    stopped = running.wait()
    assert stopped.returncode == 130, stopped.stderr
    assert "interrupted" in stopped.stderr
    assert (folder / "FAILED").read_text().strip() == "interrupted by SIGINT"
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    assert not (folder / "metrics.json").exists()


def test_two_processes_measure_what_one_does(tmp_path):
    one = command("train", *SMALL, "paths.output_dir=one", cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    data = [o for o in SMALL if o.startswith(("experiment", "data", "evaluation", "print"))]
    two = command(
        "evaluate", *data, "perturbation_set.path=one", "trainer=ddp", "trainer.accelerator=cpu", "callbacks=evaluate",
        "paths.output_dir=two", cwd=tmp_path,
    )  # fmt: skip
    assert two.returncode == 0, two.stderr
    first, second = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two"))
    assert sorted(second.pop("warnings")) == sorted(
        first["warnings"]
    )  # of a stored set some are said when it is loaded
    for name, value in second.items():
        if not name.endswith("_seconds"):
            assert value == pytest.approx(first[name], rel=1e-4), name
    rows = list(csv.DictReader((tmp_path / "two" / "per_example.csv").open()))
    assert [int(row["index"]) for row in rows] == list(range(24))


def test_training_on_two_processes_finishes(tmp_path):
    """With the default folder, which each process would name by its own clock; and odd numbers of pairs."""
    odd = ["data.validation=5", "data.train_size=70"]
    done = command("train", *TINY, *odd, "data.batch_size=8", "trainer=ddp", "trainer.accelerator=cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    runs = [path for path in (tmp_path / "outputs" / "digits" / "linf_fc").iterdir() if not path.is_symlink()]
    assert len(runs) == 1
    assert (runs[0] / "DONE").is_file()
    assert len(list(csv.DictReader((runs[0] / "per_example.csv").open()))) == 8
    alone = command("train", *TINY, *odd, "data.batch_size=16", "test=false", "paths.output_dir=alone", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    logged = []
    for folder in (runs[0], tmp_path / "alone"):
        rows = csv.DictReader((folder / "logs" / "metrics.csv").open())
        means = ("val/loss", "val/reconstruction", "val/kl", "val/encoder_ae", "train/loss", "train/kl")
        logged.append({name: float(value) for row in rows for name, value in row.items() if value and name in means})
    assert logged[0] == pytest.approx(logged[1], rel=1e-3)
    measured = command(
        "evaluate", f"run={tmp_path / 'alone'}", "trainer=ddp", "trainer.accelerator=cpu", "data.batch_size=64",
        "paths.output_dir=measured", cwd=tmp_path,
    )  # fmt: skip
    assert measured.returncode == 0, measured.stderr  # nothing is trained, so no training pairs are needed
    few = command(
        "train", *TINY, "data.train_size=15", "data.batch_size=8", "trainer=ddp", "trainer.accelerator=cpu",
        cwd=tmp_path,
    )  # fmt: skip
    assert few.returncode == 2
    assert "15 training pairs, which is less than a batch of 8 for each of 2 processes: give" in few.stderr


@pytest.mark.parametrize(
    ("varied", "message"),
    [
        (
            "method=curriculum,joint",
            "method=curriculum says how a model is trained, and nothing here trains one: drop it",
        ),
        ("trainer=cpu,ddp", "job 1: trainer.strategy=ddp starts its processes by repeating the command"),
        ("callbacks.best.monitor=val/loss,val/lss", "job 1: callbacks.best.monitor=val/lss is not logged here"),
    ],
)
def test_no_job_of_a_sweep_trains_where_a_later_one_could_not(tmp_path, varied, message):
    done = command("train", "-m", *TINY, varied, "paths.output_dir=sweep", cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert one_line(done.stderr)
    assert not (tmp_path / "sweep").exists()


def test_a_users_own_configs_are_found(tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "own.yaml").write_text("# @package _global_\nname: own\nseed: 77\n")
    done = command("train", "--config-dir", "mine", "experiment=own", "--cfg", "job", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "seed: 77" in done.stdout


def test_runs_started_in_the_same_second_get_their_own_folders(tmp_path):
    for running in [begin("train", *TINY, "test=false", cwd=tmp_path) for _ in range(2)]:
        done = running.wait()
        assert done.returncode == 0, done.stderr
    assert len(list(Path(tmp_path).rglob("DONE"))) == 2
