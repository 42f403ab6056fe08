"""Trackio's logger: one run for all parts of a run of ours, gone on with under its name, and nobody else's."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from latentrobust.errors import InputError
from latentrobust.reporting.loggers import log_figures, log_results, that_shows
from latentrobust.reporting.outcome import Examples, Outcome
from latentrobust.reporting.trackio import NAME, TrackioLogger

storage = pytest.importorskip("trackio.sqlite_storage").SQLiteStorage


@pytest.fixture
def logger(tmp_path, request):
    begun = []

    def make(folder="run", **options):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        begun.append(TrackioLogger(project=project_of(request), save_dir=str(tmp_path / folder), **options))
        return begun[-1]

    yield make
    for one in begun:
        one.finish()


def project_of(request):
    return request.node.name.replace("_", "-")[:60]


def steps(project, name):
    return [(row["step"], {key: row[key] for key in row if key not in ("step", "timestamp")})
            for row in storage.get_logs(project, name)]  # fmt: skip


def test_models_of_a_run_share_it_and_the_next_job_has_its_own(logger, request, capsys, tmp_path):
    first, second = logger(base="demo", overrides=["seed=1"]), logger("run/models/robust", prefix="robust", base="demo")
    second.home = first.home  # as runs say it
    first.log_hyperparams({"seed": 1, "data": {"size": [3, 4]}})
    first.log_metrics({"train/loss": 1.0}, step=3)
    second.log_metrics({"train/loss": np.float32(2.0)}, step=5)
    assert not (tmp_path / "run" / "models" / "robust" / NAME).exists()
    first.finish()
    second.finish()
    for part in (logger(base="demo"), logger("run/models/robust", prefix="robust", base="demo")):  # a second process
        part.home = first.home
        part.log_hyperparams({"seed": 1, "data": {"size": [3, 4]}})
        part.log_metrics({"train/loss": 4.0}, step=7)
        part.finish()
    other = logger("other", base="demo", overrides=["seed=2"])
    other.log_metrics({"train/loss": float("nan")}, step=0)
    other.finish()
    project = project_of(request)
    assert steps(project, "demo: seed=1") == [
        (3, {"train/loss": 1.0}),
        (5, {"robust-train/loss": 2.0}),
        (7, {"train/loss": 4.0}),
        (7, {"robust-train/loss": 4.0}),
    ]
    assert [step for step, _ in steps(project, "demo: seed=2")] == [0]
    assert storage.get_run_config(project, "demo: seed=1")["data"] == {"size": [3, 4]}
    said = capsys.readouterr().out
    assert said.count("trackio show --project") == 4  # two processes of one run, one of them in two parts, and another
    assert "initialized" not in said


def test_a_run_is_gone_on_with_and_a_new_one_of_the_same_name_is_new(logger, request, tmp_path):
    for step in (1, 2):  # two processes of one run
        part = logger(base="a")
        part.log_metrics({"x": 1.0}, step=step)
        part.finish()
    assert (tmp_path / "run" / NAME).read_text() == "a\n"
    assert [step for step, _ in steps(project_of(request), "a")] == [1, 2]
    again = logger("again", base="a")
    again.log_metrics({"x": 1.0}, step=7)
    again.finish()
    records = [record for record in storage.get_run_records(project_of(request)) if record["name"] == "a"]
    assert len(records) == 2


def test_what_a_run_ends_with(logger, request, tmp_path):
    figure = Figure(figsize=(1, 1))
    image = np.zeros((4, 5, 3), np.uint8)
    outcome = Outcome(
        "a", tmp_path, 9, {"accuracy/clean": 0.5}, {"drawn": figure}, np.array([1.0, 2.0]),
        {"accuracy under attack": {"model": [(0.0, 0.5), (1.0, 0.25)]}},
        Examples(("x", "index", "radius"), [[image, 0, 0.5], [None, 1, ""]]),
    )  # fmt: skip
    one = logger(base="a")
    log_figures([one], {}, 4)  # nothing to show
    log_results([one], outcome)
    one.finish()
    rows = storage.get_logs(project_of(request), "a")
    assert {row["step"] for row in rows} == {9}
    shown = {key: value for row in rows for key, value in row.items()}
    assert shown["accuracy/clean"] == 0.5
    assert shown["figures/drawn"]["_type"] == "trackio.image"
    assert shown["charts/accuracy under attack"]["_value"][1] == {"model": "model", "radius": 1.0, "share": 0.25}
    assert shown["examples"]["_value"][0]["x"]["_type"] == "trackio.image"
    assert shown["examples"]["_value"][1]["radius"] is None
    log_results([one], Outcome("a", tmp_path, 9, {}, {}))  # nothing was measured


def test_without_trackio_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr("latentrobust.reporting.trackio.importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'latentrobust\[trackio\]'"):
        TrackioLogger(project="p", save_dir="nowhere")
    assert that_shows(object()) is None
