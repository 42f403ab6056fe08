"""``evaluate run=FOLDER``: what a run has made, measured again by its own configuration."""

import json
import re
import shutil

import pytest
from omegaconf import OmegaConf

from latentrobust import report
from latentrobust.again import expanded
from latentrobust.errors import InputError
from latentrobust.overrides import follow_latest, name_latest
from latentrobust.sweeping.plan import read_plan
from latentrobust.sweeping.search import Search

from ..conftest import compose_in_process
from .test_commands import TINY, command, one_line
from .test_train import TIMES

PLAIN = ["print_config=false", "report=false", "callbacks.progress=null"]
OVER = [
    "experiment=mnist/model/paper", "method=smoothing", "data=digits", "data/perturbation=linf", "data.test_size=12",
    "model=lenet5", "trainer.accelerator=cpu", "trainer.max_epochs=1", "trainer.limit_train_batches=2",
    "task.validation_attack.steps=1", "task.attack_examples=4", "evaluation/robust=paper",
    "evaluation.robust.attacks.pgd.steps=2", "evaluation.robust.examples=6", "evaluation.certify.n=40",
    "evaluation.certify.n0=10", "evaluation.certify.alpha=0.05", "evaluation.certify.target=p25",
    "evaluation.certify.examples=3", *PLAIN,
]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a run that learned a set and one that trained a model over it."""
    folder = tmp_path_factory.mktemp("made")
    done = command("train", *TINY, "paths.output_dir=set", cwd=folder)
    assert done.returncode == 0, done.stderr
    done = command("train", *OVER, "from=set", "paths.output_dir=model", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def metrics(folder):
    found = json.loads((folder / "metrics.json").read_text())
    found["warnings"].sort()  # what is known of a stored set is said when it is loaded
    return {key: value for key, value in found.items() if not any(part in key for part in (*TIMES, "fit_", "step"))}


def test_a_set_is_measured_as_in_its_run(made):
    done = command("evaluate", "run=set", *PLAIN, "paths.output_dir=again", cwd=made)
    assert done.returncode == 0, done.stderr
    again, first = metrics(made / "again"), metrics(made / "set")
    assert again == {key: first[key] for key in again}
    assert {"quality/pgd_ae", "coverage/radius"} <= set(again)


def test_a_search_that_measures_a_run_is_about_what_its_trials_measure(made, tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    detail = {"evaluation.quality.detail": {"choices": [4, 8]}}
    overrides = ["run=set", *PLAIN]
    monkeypatch.chdir(made)
    plan = {"app": "evaluate", "metric": "quality/pgd_ae", "direction": "minimize", "trials": 2}
    plan |= {"overrides": overrides, "parameters": detail}
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))
    for place in (made, tmp_path):  # begun in one directory, and gone on with from another one
        monkeypatch.chdir(place)
        search = Search(read_plan(tmp_path / "plan.yaml"), tmp_path / "search")
        found = search._composed(search.overrides({"evaluation.quality.detail": 4}))
        assert found["perturbation_set"]["path"] == str(made / "set")
        assert found["evaluation"]["quality"]["detail"] == 4


def test_a_model_is_measured_as_in_its_run_and_further_overrides_win(made):
    done = command("evaluate", "run=model", *PLAIN, "paths.output_dir=model_again", cwd=made)
    assert done.returncode == 0, done.stderr
    again, first = metrics(made / "model_again"), metrics(made / "model")
    assert again == {key: first[key] for key in again}
    assert {"accuracy/perturbed", "robust/full", "certified/p25"} <= set(again)
    harder = ["evaluation.robust.attacks.pgd.steps=3", "data.test_size=8", "evaluation.certify=null"]
    done = command("evaluate", "run=model", *harder, *PLAIN, "paths.output_dir=harder", cwd=made)
    assert done.returncode == 0, done.stderr
    assert "data.test_size is 8 here and was 12\n" in done.stdout
    assert not any(key.startswith("certified") for key in metrics(made / "harder"))


def test_over_another_set(made):
    """The radius that the model was trained for is one of the learned set, and says nothing here."""
    other = ["perturbation_set=pixel_ball", "perturbation_set.radius=0.05"]
    done = command(
        "evaluate", "run=model", *other, "evaluation.certify=null", *PLAIN, "paths.output_dir=ball", cwd=made
    )
    assert done.returncode == 0, done.stderr
    assert "robust/eps=0.05" in metrics(made / "ball") or "robust/full" in metrics(made / "ball")


def test_what_the_new_command_says_takes_the_place_of_what_the_old_one_said(made, monkeypatch):
    monkeypatch.chdir(made)
    found = expanded(["run=model", "data=mnist", "evaluation.robust.examples=3"])
    assert "data=mnist" in found
    assert not {"data=digits", "data.test_size=12", "evaluation.robust.examples=6"} & set(found)
    assert "data/perturbation=linf" not in found  # of the data that are no more
    assert {"evaluation.certify.n=40", "from=set", "method=smoothing", "name=digits/paper/smoothing/evaluate"} <= set(
        found
    )
    assert [part for part in found if part.startswith("model")] == ["model=trained", f"model.path={made}/model"]
    assert not any(part.startswith(("trainer", "callbacks")) for part in found)
    # Another model by the same measures: the run's own is not named, of which that option knows nothing.
    found = expanded(["run=model", "model=own", "model.source=mine.Net"])
    assert [part for part in found if part.startswith("model")] == ["model=own", "model.source=mine.Net"]
    found = expanded(["run=model", "model=trained"])
    assert f"model.path={made}/model" in found


@pytest.mark.parametrize("folder", ["nowhere", "again/figures", "."])
def test_a_folder_without_a_run_is_refused(made, folder):
    done = command("evaluate", f"run={folder}", "paths.output_dir=refused", cwd=made)
    assert done.returncode == 2
    assert "no run has left its config.yaml there" in done.stderr
    assert one_line(done.stderr)
    assert not (made / "refused").exists()


def test_a_run_that_only_measured_or_made_several_models_is_refused(made, tmp_path, monkeypatch):
    monkeypatch.chdir(made)
    (tmp_path / "several" / "models" / "b" / "model").mkdir(parents=True)
    (tmp_path / "several" / "models" / "a" / "model").mkdir(parents=True)
    (tmp_path / "several" / "config.yaml").write_text((made / "model" / "config.yaml").read_text())
    with pytest.raises(InputError, match=r"holds several models: name one, such as run=.*models/a$"):
        expanded([f"run={tmp_path}/several"])
    assert f"model.path={tmp_path}/several/models/b" in expanded([f"run={tmp_path}/several/models/b"])
    (tmp_path / "measured").mkdir()
    (tmp_path / "measured" / "config.yaml").write_text((made / "model" / "config.yaml").read_text())
    with pytest.raises(InputError, match="holds neither a set nor a model"):
        expanded([f"run={tmp_path}/measured"])


def test_what_a_sweep_s_file_said_of_the_data_is_said_again(made, tmp_path):
    configuration = OmegaConf.load(made / "model" / "config.yaml")
    configuration.overrides.append("+sweep=figure_2")
    configuration.data.split_seed = 2
    (tmp_path / "model").mkdir()
    OmegaConf.save(configuration, tmp_path / "config.yaml")
    assert "data.split_seed=2" in expanded([f"run={tmp_path}"])
    found = expanded([f"run={tmp_path}", "data.split_seed=3"])
    assert [text for text in found if "split_seed" in text] == ["data.split_seed=3"]
    assert not [text for text in found if "sweep=" in text]


def test_what_is_stored_says_which_run_latest_was(tmp_path):
    first = tmp_path / "lamps" / "2026-01-01_00-00-00-000000"
    first.mkdir(parents=True)
    (tmp_path / "lamps" / "latest").symlink_to(first.name)
    latest = f"{tmp_path}/lamps/latest"
    cfg = compose_in_process(
        "train", f"from={latest}", "perturbation_set=trained", "model=trained", f"model.path={latest}/models/a",
        "paths.output_dir=x",
    )  # fmt: skip
    name_latest(cfg)
    assert (cfg["from"], cfg.model.path) == (str(first), f"{first}/models/a")
    assert cfg.perturbation_set.path == str(first)  # which refers to `from`
    (tmp_path / "b").symlink_to(tmp_path / "lamps")
    assert follow_latest(f"from={latest},{tmp_path}/b/latest") == f"from={first},{tmp_path}/b/{first.name}"
    assert follow_latest(f"from='{latest}'") == f"from='{first}'"
    assert follow_latest(f"run={latest}/models/a") == f"run={first}/models/a"
    assert follow_latest(f"from='{latest}','b'") == f"from='{latest}','b'"
    cfg = compose_in_process("train", "from=nowhere/latest", "paths.output_dir=x")
    name_latest(cfg)
    assert cfg["from"] == "nowhere/latest"  # what it is about is said where it is read


def test_flags_come_first_and_places_may_have_any_name(made, tmp_path):
    """Hydra takes overrides in one piece, and reads something else into ``=`` and ``,`` without quotes."""
    place = tmp_path / "lr=0.1,0.2"
    shutil.copytree(made / "model", place)
    for named in (f"run={place}", f"run='{place}'"):
        found = expanded(["-m", named, "seed=1,2", "--config-dir", "a=b", "~x", "--info", "defaults"])
        assert found[:5] == ["-m", "--config-dir", "a=b", "--info", "defaults"]
        assert f"model.path='{place}'" in found
        assert found[-3:] == ["seed=1,2", "~x", f"run='{place}'"]
    done = command("evaluate", f"run={place}", "--cfg", "job", "--resolve", "-p", "model", cwd=made)
    assert done.returncode == 0, done.stderr
    assert f"path: {place}" in done.stdout


def test_the_report_of_a_run_whose_set_is_gone_is_refused_in_one_line(made, tmp_path, capsys):
    shutil.copytree(made / "model", tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(re.sub(r"(path|from): \S*set$", r"\1: gone", config.read_text(), flags=re.MULTILINE))
    with pytest.raises(SystemExit, match="2"):
        report.main([str(tmp_path / "run")])
    error = capsys.readouterr().err
    assert "no perturbation set at gone" in error
    assert error.count("\n") == 1


def test_without_a_run_nothing_changes():
    assert expanded(["data=digits", "perturbation_set=rts"]) == ["data=digits", "perturbation_set=rts"]


def test_a_sweep_over_the_latest_run_is_not_done_again(made):
    """Its list of jobs, and each job's own configuration, name the run that it was."""
    (made / "latest").symlink_to("set")
    sweep = ["-m", *OVER, "from=latest", "test=false", "seed=1,2", "paths.output_dir=sweep"]
    done = command("train", *sweep, cwd=made)
    assert done.returncode == 0, done.stderr
    before = {path: path.stat().st_mtime_ns for path in made.glob("sweep/*/metrics.json")}
    assert len(before) == 2
    jobs = json.loads((made / "sweep" / "jobs.json").read_text())["jobs"]
    assert all("from=set" in job["overrides"] for job in jobs)
    for path in before:  # and the jobs that Hydra composed itself
        assert "from=set" in OmegaConf.load(path.parent / "config.yaml").overrides
    again = command("train", *sweep, cwd=made)
    assert again.returncode == 0, again.stdout + again.stderr
    assert {path: path.stat().st_mtime_ns for path in made.glob("sweep/*/metrics.json")} == before


def test_a_model_that_was_trained_without_a_set_is_measured_again(tmp_path):
    without = [
        "experiment=mnist/lenet", "method=standard", "data=digits", "data/perturbation=none", "data.canvas=28",
        "data.validation=200", "data.test_size=20", "trainer.accelerator=cpu", "trainer.max_epochs=1",
        "trainer.limit_train_batches=2", *PLAIN,
    ]  # fmt: skip
    done = command("train", *without, "paths.output_dir=model", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = command("evaluate", "run=model", *PLAIN, "paths.output_dir=again", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    again, first = metrics(tmp_path / "again"), metrics(tmp_path / "model")
    assert again == {key: first[key] for key in again}
    assert "accuracy/clean" in again


def test_the_set_that_was_the_latest_is_the_one_that_a_model_is_measured_over(tmp_path):
    """Another run of that name may have finished since."""
    for name, latest in (("a", "x/a"), ("b", "x/b")):
        run = tmp_path / "x" / name
        run.mkdir(parents=True)
        place = tmp_path / "x" / "latest"
        place.unlink(missing_ok=True)
        place.symlink_to(name)
        if name == "a":
            model = tmp_path / "model"
            (model / "model").mkdir(parents=True)
            given = ["experiment=mnist/model", "from=x/latest", "model=lenet5"]
            stored = {"name": "m", "overrides": given, "from": latest, "paths": {}, "job_type": "train"}
            (model / "config.yaml").write_text(json.dumps(stored))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "latest").symlink_to(model)
    found = expanded([f"run={tmp_path}/models/latest"])
    assert "from='x/a'" in found or "from=x/a" in found
    assert not any("latest" in argument for argument in found)


def test_a_sweep_of_measurements_is_done(made):
    done = command(
        "evaluate", "-m", "run=model", "evaluation.robust.examples=2,3", "evaluation.certify=null", *PLAIN,
        "paths.output_dir=measured", cwd=made,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    status = command("sweep", "status", "measured", cwd=made)
    assert status.returncode == 0, status.stderr
    assert "2 jobs: 2 done" in status.stdout
