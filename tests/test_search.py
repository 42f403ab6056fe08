"""A search asks Optuna for trials, runs each in its own folder, prunes, and survives its processes."""

import csv
import json
import math
import signal
import subprocess
import sys
import threading
import time

import pytest
import yaml

from latentrobust.errors import InputError
from latentrobust.lock import FolderLock
from latentrobust.search import main
from latentrobust.sweep import status
from latentrobust.sweeping import search
from latentrobust.sweeping.jobs import Sweep
from latentrobust.sweeping.plan import Parameter, read_plan
from latentrobust.sweeping.search import Search, logged
from latentrobust.values import check_values

from .conftest import SMALL

pytest.importorskip("optuna")

# A stand-in for a run, whose value is a parabola of the learning rate; what it logs comes near to it.
RUN = """
import json, math, pathlib, sys, time
given = dict(line.lstrip("+").split("=", 1) for line in sys.argv[1:] if "=" in line)
place = pathlib.Path(given["paths.output_dir"].strip("'"))
(place / "logs").mkdir(parents=True, exist_ok=True)
value = (math.log10(float(given["learner.optimizer.lr"])) + 3) ** 2
if float(given.get("trainer.gradient_clip_val", 1)) > 5:
    print("latentrobust train: refused"); sys.exit(2)
rows = "epoch,val/loss\\n"
for epoch in range(4):
    rows += f"{epoch},{value + 1 / (epoch + 1)}\\n"
    (place / "logs" / "metrics.csv").write_text(rows)
    time.sleep(float(given.get("learner.spread", 0)))
(place / "metrics.json").write_text(json.dumps({"quality/pgd_ae": value}))
(place / "config.yaml").write_text("overrides: []\\npaths: {}\\n")
(place / "DONE").write_text("")
"""
DRIVER = """
import sys
from latentrobust.sweeping import search
search.POLL = 0.05
search.entry_point = lambda sweep, job: [
    sys.executable, RUN, *job.overrides, f"paths.output_dir={sweep.place(job)}"
]
search.Search._composed = lambda self, overrides: {}  # half a second each; real runs are below
from latentrobust.lock import FolderLock
from latentrobust.search import main
main(sys.argv[1:])
"""


def plan_of(**changed):
    return {
        "metric": "quality/pgd_ae",
        "direction": "minimize",
        "trials": 12,
        "parameters": {"learner.optimizer.lr": {"low": "1e-5", "high": 1e-1, "log": True}},
        "overrides": ["experiment=digits/rts"],
    } | changed


@pytest.fixture
def driver(tmp_path):
    """A command whose trials are stand-ins; arguments are a plan and a folder."""
    (tmp_path / "run.py").write_text(RUN.replace("\\\\n", "\\n"))
    (tmp_path / "driver.py").write_text(DRIVER.replace("RUN", repr(str(tmp_path / "run.py"))))

    def start(plan, folder="search"):
        (tmp_path / "plan.yaml").write_text(json.dumps(plan))
        return subprocess.Popen(
            [sys.executable, str(tmp_path / "driver.py"), str(tmp_path / "plan.yaml"), str(tmp_path / folder)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return start


composed_for = Search._composed


def compose_a_trial(plan):
    """What `here` leaves out."""
    bare = Search.__new__(Search)
    bare.plan = plan
    return composed_for(bare, bare.overrides({}))


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    """The same in this process, which need not start: what is printed, errors, and the exit code."""
    (tmp_path / "run.py").write_text(RUN.replace("\\\\n", "\\n"))
    monkeypatch.setattr(search, "POLL", 0.05)
    monkeypatch.setattr(
        Search, "_composed", lambda self, overrides: {}
    )  # half a second each; `compose_a_trial` does it
    monkeypatch.setattr(
        search, "entry_point", lambda sweep, job: [
            sys.executable, str(tmp_path / "run.py"), *job.overrides, f"paths.output_dir={sweep.place(job)}"
        ],
    )  # fmt: skip

    def run(plan, folder="search"):
        (tmp_path / "plan.yaml").write_text(json.dumps(plan))
        code = 0
        try:
            main([str(tmp_path / "plan.yaml"), str(tmp_path / folder)])
        except SystemExit as stopped:
            code = stopped.code
        said = capsys.readouterr()
        return said.out, said.err, code

    return run


def rows_of(folder):
    return list(csv.DictReader((folder / "search.csv").open()))


def test_a_search_finds_what_is_good_and_says_how_to_run_it(tmp_path, here):
    out, error, code = here(plan_of(trials=14, seed=3))
    assert code == 0, error
    assert "14 trials: 14 complete" in out
    rows = rows_of(tmp_path / "search")
    assert [int(row["trial"]) for row in rows] == list(range(14))
    best = min(rows, key=lambda row: float(row["quality/pgd_ae"]))
    assert float(best["quality/pgd_ae"]) < 0.2
    # After ten random trials, where there is a good one, Optuna looks near it: the mean of random ones is 4 / 3.
    assert sum(float(row["quality/pgd_ae"]) for row in rows[10:]) / 4 < 0.7
    assert f"experiment=digits/rts learner.optimizer.lr={best['learner.optimizer.lr']}" in out
    states, _ = status(Sweep(tmp_path / "search"))
    assert len(states) == 14
    assert "15 trials" in here(plan_of(trials=15, seed=3))[0]  # more of them: the same folder goes on
    _, error, code = here(plan_of(direction="maximize", seed=3))
    assert "another search" in error
    assert code == 2


def test_all_trials_are_about_the_run_that_was_the_latest_at_first(tmp_path):
    for name in ("2026-01-01_00-00-00-000000", "2026-01-02_00-00-00-000000"):
        (tmp_path / "sets" / name).mkdir(parents=True)
    latest = tmp_path / "sets" / "latest"
    latest.symlink_to("2026-01-01_00-00-00-000000")
    overrides = ["experiment=digits/rts", *SMALL, f"learner.init_from={latest}"]
    (tmp_path / "plan.yaml").write_text(json.dumps(plan_of(overrides=overrides)))
    found = []
    for _ in range(2):
        search = Search(read_plan(tmp_path / "plan.yaml"), tmp_path / "search")
        found.append([line for line in search.overrides({}) if line.startswith("learner.init_from")])
        latest.unlink()
        latest.symlink_to("2026-01-02_00-00-00-000000")
    assert found[0] == found[1] == [f"learner.init_from={tmp_path}/sets/2026-01-01_00-00-00-000000"]


def test_hopeless_trials_are_pruned(tmp_path, here):
    # Each logs four values, two tenths of a second apart.
    _, error, code = here(
        plan_of(trials=8, prune="val/loss", overrides=["experiment=digits/rts", "learner.spread=0.2"])
    )
    assert code == 0, error
    rows = rows_of(tmp_path / "search")
    pruned = [row for row in rows if row["state"] == "PRUNED"]
    assert pruned
    assert all(row["quality/pgd_ae"] == "" for row in pruned)
    assert not [row for row in rows[:4] if row["state"] != "COMPLETE"]  # the first ones say what is usual
    complete = [abs(-3 - math.log10(float(row["learner.optimizer.lr"]))) for row in rows
                if row["state"] == "COMPLETE"]  # fmt: skip
    hopeless = [abs(-3 - math.log10(float(row["learner.optimizer.lr"]))) for row in pruned]
    assert min(hopeless) > min(complete)
    sweep = Sweep(tmp_path / "search")
    for row in pruned:
        assert len(logged(tmp_path / "search" / row["trial"], "val/loss")) < 5
        assert sweep.state(sweep.jobs[int(row["trial"])]).name == "PRUNED"
    assert status(sweep)[1] == 0  # seconds left: no worker goes on with what was pruned


def test_processes_share_a_search_and_take_over_from_the_dead(tmp_path, driver):
    plan = plan_of(trials=10, overrides=["experiment=digits/rts", "learner.spread=0.1"])
    processes = [driver(plan)]
    deadline = time.time() + 60
    while not (tmp_path / "search" / "search.json").is_file() and time.time() < deadline:
        time.sleep(0.1)
    processes += [driver(plan), driver(plan)]
    while not (tmp_path / "search" / "search.csv").is_file() and time.time() < deadline:
        time.sleep(0.1)
    processes[0].send_signal(signal.SIGKILL)
    for process in processes[1:]:
        _, error = process.communicate(timeout=200)
        assert process.returncode == 0, error
    rows = rows_of(tmp_path / "search")
    assert [row["state"] for row in rows] == ["COMPLETE"] * 10
    assert len({row["learner.optimizer.lr"] for row in rows}) == 10
    processes[0].communicate()


def test_a_trial_whose_process_died_while_it_asked_gets_the_parameters_it_would_have_had(tmp_path, here):
    parameters = {
        "learner.optimizer.lr": {"low": 1e-5, "high": 1e-1, "log": True},
        "learner.spread": {"low": 0, "high": 0.1},
    }
    plan = plan_of(trials=3, parameters=parameters)
    assert here(plan, "undisturbed")[2] == 0
    expected = rows_of(tmp_path / "undisturbed")
    for given in range(2):  # parameters that it had been given
        folder = tmp_path / f"search{given}"
        half = Search(read_plan(tmp_path / "plan.yaml"), folder)
        asked = half.study.ask()
        for key in list(parameters)[:given]:
            half.plan.parameters[key].suggest(asked, key)
        value = asked.params.get("learner.optimizer.lr")
        assert here(plan, folder.name)[2] == 0
        found = rows_of(folder)
        assert [row["state"] for row in found] == ["COMPLETE"] * 3
        if value is None:
            assert found == expected
        else:
            assert float(found[0]["learner.optimizer.lr"]) == value
            assert found[0]["learner.spread"] == expected[0]["learner.spread"]


def test_trials_that_are_all_refused_end_the_search(here):
    parameters = {"trainer.gradient_clip_val": {"low": 6.0, "high": 9.0}, "learner.optimizer.lr": {"choices": [1e-3]}}
    _, error, code = here(plan_of(parameters=parameters))
    assert code == 2
    assert "3 trials came to nothing, and none has a value: latentrobust train: refused" in error


def test_a_search_over_real_runs(tmp_path, capsys):
    plan = plan_of(
        trials=1,
        parameters={"learner.network.hidden": {"choices": [8, 16]}},
        overrides=[*SMALL, "trainer.max_epochs=1", "trainer.limit_train_batches=2", "data.test_size=8"],
        prune="val/loss",
    )
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))
    main([str(tmp_path / "plan.yaml"), str(tmp_path / "search")])
    out = capsys.readouterr().out
    assert "1 trials: 1 complete" in out
    for row in rows_of(tmp_path / "search"):
        metrics = json.loads((tmp_path / "search" / row["trial"] / "metrics.json").read_text())
        assert float(row["quality/pgd_ae"]) == metrics["quality/pgd_ae"]
        assert len(logged(tmp_path / "search" / row["trial"], "val/loss")) == 1
    assert [state.name for state in status(Sweep(tmp_path / "search"))[0]] == ["DONE"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"metrik": "x"}, "did you mean metric"),
        ({"metric": None}, "lacks metric"),
        ({"direction": "down"}, "direction must be minimize or maximize"),
        ({"trials": 0}, "trials must be a whole number"),
        ({"parameters": {"a": {"low": 1}}}, "parameters.a: give low and high"),
        ({"parameters": {"a": {"low": 2, "high": 1}}}, "must lie below"),
        ({"parameters": {"a": {"low": 0, "high": 1, "step": 0}}}, "must lie above 0"),
        ({"prune": "val/radius"}, "give prune_direction"),
        ({"prune": 3}, "prune must be a name"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"parameters": {"a": {"low": 1, "high": 2, "log": "yes"}}}, "log must be true or false"),
        ({"parameters": {"a": {"low": 0, "high": 1, "log": True}}}, "with log above 0"),
        ({"parameters": {"a": {"choices": [[1]]}}}, "choices are numbers"),
        ({"parameters": {"a": {"lo": 1}}}, "did you mean low"),
        ({"parameters": [1]}, "parameters must be keys"),
        ({"overrides": "experiment=demo"}, "overrides must be a list"),
        ({"parameters": {"a": {"choices": 5}}}, "choices must be a list of values, got 5"),
        ({"parameters": {"a": {"choices": "12"}}}, "choices must be a list of values, got '12'"),
        ({"parameters": {"a": {"choices": {"x": 1}}}}, "choices must be a list of values"),
        ({"parameters": {"a": {"low": True, "high": 5}}}, "give low and high as numbers"),
        ({"parameters": {"a": {"low": 2, "high": 9, "step": 4}}}, "do not meet high=9, which would never be tried"),
        ({"parameters": {"a": {"low": 0.1, "high": 0.35, "step": 0.1}}}, "do not meet high=0.35"),
    ],
)
def test_bad_plans_are_refused(tmp_path, changed, message):
    (tmp_path / "plan.yaml").write_text(json.dumps(plan_of(**changed)))
    with pytest.raises(InputError, match=message):
        read_plan(tmp_path / "plan.yaml")


def test_a_plan_needs_no_overrides_and_takes_steps_that_meet_its_end(tmp_path):
    plan = plan_of(parameters={"a": {"low": 0.1, "high": 0.7, "step": 0.1}, "b": {"low": 2, "high": 10, "step": 4}})
    del plan["overrides"]
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))
    assert list(read_plan(tmp_path / "plan.yaml").overrides) == []


def test_options_that_do_not_exist_are_refused_before_any_trial(tmp_path):
    (tmp_path / "plan.yaml").write_text(json.dumps(plan_of(parameters={"learner.lr": {"choices": [1, 2]}})))
    with pytest.raises(InputError, match=r"learner\.lr"):
        Search(read_plan(tmp_path / "plan.yaml"), tmp_path / "search")
    assert not (tmp_path / "search").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    (tmp_path / "plan.yaml").write_text(json.dumps(plan_of()))
    with pytest.raises(InputError, match="is not empty"):
        Search(read_plan(tmp_path / "plan.yaml"), tmp_path / "full")


def test_what_does_not_exist_is_explained_by_what_the_plan_chooses(tmp_path):
    chosen = {"overrides": ["experiment=mnist/model", "from=x"], "metric": "accuracy/clean"}
    parameters = {"task.optimizer.momentumm": {"choices": [0.5, 0.9]}}
    (tmp_path / "plan.yaml").write_text(json.dumps(plan_of(**chosen, parameters=parameters)))
    with pytest.raises(InputError, match="Adam has no option momentumm"):
        Search(read_plan(tmp_path / "plan.yaml"), tmp_path / "search")


def test_whole_numbers_stay_whole():
    optuna = pytest.importorskip("optuna")
    trial = optuna.create_study().ask()
    assert isinstance(Parameter(low=2, high=64, log=True).suggest(trial, "a"), int)
    assert isinstance(Parameter(low=2, high=64.0).suggest(trial, "b"), float)
    assert isinstance(Parameter(low=0, high=1, step=0.25).suggest(trial, "c"), float)


def test_what_better_means_for_pruning_is_told_by_the_name(tmp_path):
    for name, direction in (("val/loss", "minimize"), ("adversarial-val/accuracy/robust", "maximize")):
        (tmp_path / "plan.yaml").write_text(json.dumps(plan_of(prune=name, metric="robust/p50", direction="maximize")))
        assert read_plan(tmp_path / "plan.yaml").prune_direction == direction


def test_every_choice_is_tried_before_the_first_trial(tmp_path):
    parameters = {"learner.latents": {"choices": ["all", "actve", "active"]}}
    (tmp_path / "plan.yaml").write_text(json.dumps(plan_of(parameters=parameters)))
    with pytest.raises(InputError, match="actve"):
        Search(read_plan(tmp_path / "plan.yaml"), tmp_path / "search")
    overrides = ["experiment=digits/rts", "logger=null", "learner.radius=coverage=0.9"]
    (tmp_path / "plan.yaml").write_text(json.dumps(plan_of(overrides=overrides)))
    Search(read_plan(tmp_path / "plan.yaml"), tmp_path / "search")


def test_pruning_by_what_nobody_logs_is_refused(tmp_path, here):
    _, error, code = here(plan_of(prune="val/lossy", prune_direction="minimize"))
    assert code == 2
    assert "trial 0 logged nothing of that name" in error
    (tmp_path / "plan.yaml").write_text(json.dumps(plan_of(prune="val/loss", overrides=["logger=none"])))
    with pytest.raises(InputError, match="drop prune, or logger=none"):
        compose_a_trial(read_plan(tmp_path / "plan.yaml"))


def test_a_metric_that_no_trial_has_ends_a_search_after_the_first_few(tmp_path, here):
    _, error, code = here(plan_of(metric="quality/pgd_aee"))
    assert code == 2
    assert "trial 0 measured nothing of that name; did you mean quality/pgd_ae?" in error
    assert "3 trials came to nothing, and none has a value: metric=quality/pgd_aee" in error
    assert [row["state"] for row in rows_of(tmp_path / "search")] == ["FAIL"] * 3


def test_a_trial_whose_values_have_no_such_metric_is_one_that_failed(tmp_path, here):
    parameters = {"learner.optimizer.lr": {"choices": [1e-3, 1e-2]}, "learner.latents": {"choices": ["all", "active"]}}
    script = RUN.replace('{"quality/pgd_ae": value}', '{given["learner.latents"]: value}').replace("\\\\n", "\\n")
    (tmp_path / "run.py").write_text(script)
    out, _, code = here(plan_of(metric="active", trials=8, parameters=parameters))
    assert code == 0
    rows = rows_of(tmp_path / "search")
    states = {(row["learner.latents"], row["state"]) for row in rows}
    assert states == {("all", "FAIL"), ("active", "COMPLETE")}
    assert len(rows) == 8
    assert "best: trial" in out


def test_a_search_in_which_every_trial_fails_says_so_by_its_code(tmp_path, here):
    _, error, code = here(plan_of(trials=1, overrides=["experiment=digits/rts", "learner.spread=no"]))
    assert code == 1
    assert "trial 0 failed" in error


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, here):
    (tmp_path / "search").write_text("a file")
    _, error, code = here(plan_of())
    assert code == 2
    assert len(error.splitlines()) == 1


def test_a_run_that_outlived_its_search_is_waited_for(tmp_path, here):
    place = tmp_path / "search" / "0"
    started = time.time()

    def let_go(*_):
        lock.release()

    here(plan_of(trials=1))  # makes the folder
    lock = FolderLock(place)
    lock.acquire()
    threading.Timer(0.5, let_go).start()
    chosen = Search(read_plan(tmp_path / "plan.yaml"), tmp_path / "search")
    job = Sweep(tmp_path / "search").jobs[0]
    with chosen._held(job.number) as mine:
        state, value = chosen._run(job, mine)
    assert state.name == "COMPLETE"
    assert value is not None
    assert time.time() - started > 0.5


def test_the_sweep_file_of_wandb_drives_the_command_line(repository, composed):
    said = yaml.safe_load((repository / "docs" / "wandb_sweep.yaml").read_text())
    assert said["command"][:4] == ["${env}", "${interpreter}", "-m", "latentrobust.train"]
    assert said["command"][-1] == "${args_no_hyphens}"
    assert not any("${" in line for line in said["command"][4:-1])  # the agent knows few such names
    own = said["command"][4:-1]
    chosen = [f"{key}={(values.get('values') or [values.get('min')])[0]}" for key, values in said["parameters"].items()]
    cfg = composed("train", *own, *chosen)
    assert cfg.learner.optimizer.lr == 1e-4
    check_values(cfg)
    assert said["metric"]["name"] == "quality/pgd_ae"
    assert cfg.evaluation.quality is not None


def test_logs_that_were_set_aside_are_not_read(tmp_path):
    for folder, value in ((".earlier/1/logs", 9.0), ("logs", 1.0)):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "metrics.csv").write_text(f"val/loss\n{value}\n")
    assert logged(tmp_path, "val/loss") == [1.0]
