"""Weights & Biases: whether runs are sent, what they are called, and nothing that stalls or gives away a key."""

import sys
import time
from fnmatch import fnmatch
from types import SimpleNamespace

import pytest

from latentrobust import dashboard
from latentrobust.errors import InputError
from latentrobust.learners.cvae import CVAELearner
from latentrobust.reporting import weights_and_biases
from latentrobust.reporting.weights_and_biases import RunLogger, goal_of, run_name
from latentrobust.tasks.classification import ClassificationTask


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # where keys of `wandb login` lie
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # where nobody answers


def test_without_a_key_or_a_server_runs_stay_at_home_and_say_so(monkeypatch, capsys):
    started = time.perf_counter()
    logger = RunLogger()
    assert logger.is_offline
    logger.say_where()
    logger.say_where()
    assert capsys.readouterr().out.count("kept in its folder") == 1
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert RunLogger().is_offline
    assert time.perf_counter() - started < weights_and_biases.PATIENCE
    monkeypatch.setattr(weights_and_biases.requests, "head", lambda url, timeout: None)
    assert not RunLogger().is_offline
    assert RunLogger(offline=True).is_offline
    assert not RunLogger(offline=False).is_offline
    monkeypatch.delenv("WANDB_API_KEY")
    with pytest.raises(InputError, match=r"offline=false needs a key"):
        RunLogger(offline=False)


def test_further_models_of_a_run_ask_nobody_again(monkeypatch, capsys):
    def asked(*_, **__):
        raise AssertionError("the server was asked")

    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setattr(weights_and_biases.requests, "head", asked)
    for offline in (True, False):
        monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=SimpleNamespace(offline=offline)))
        logger = RunLogger()
        logger.say_where()
        assert logger.is_offline is offline
    assert not capsys.readouterr().out


def test_modes_that_the_environment_asks_for_hold(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = RunLogger()
    assert logger.is_offline
    assert logger._has_said
    with pytest.raises(InputError, match="contradict"):
        RunLogger(offline=False)
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(InputError, match="needs a key"):
        RunLogger()
    with pytest.raises(InputError, match="contradict"):
        RunLogger(offline=True)
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    with pytest.raises(InputError, match="does not answer"):
        RunLogger()
    monkeypatch.setenv("WANDB_MODE", "of-line")
    with pytest.raises(InputError, match="WANDB_MODE=of-line does not exist"):
        RunLogger()


def test_runs_are_called_by_what_was_changed():
    overrides = ["experiment=demo", "seed=3", "learner.optimizer.lr=1e-3", "logger=wandb", "paths.output_dir=/x"]
    assert run_name("demo", overrides) == "demo: seed=3, lr=1e-3"
    assert run_name("demo", ["~learner", "perturbation_set.path=runs/lamps/set"]) == "demo: path=set"
    assert run_name("demo", []) == "demo"
    assert run_name("", [f"a.b{number}=1" for number in range(8)]).endswith("b7=1, and 3 more")


def test_the_better_end_of_a_curve():
    assert goal_of("val/accuracy/robust") == goal_of("train/accuracy") == "max"
    assert goal_of("val/loss") == goal_of("val/encoder_ae") == "min"
    assert goal_of("train/lr") is goal_of("accuracy/clean") is goal_of("val/latent_norm/p50") is None


def test_a_workspace_is_valid_and_shows_what_is_logged(tmp_path, capsys):
    views = pytest.importorskip("wandb_workspaces.workspaces")
    from wandb_workspaces.workspaces.internal import View  # noqa: PLC0415

    dashboard.main(["me/lamps", "--to", str(tmp_path / "view.json")])
    assert "a view of 4 sections" in capsys.readouterr().out
    view = views.Workspace._from_model(View.model_validate_json((tmp_path / "view.json").read_text()))
    assert [section.name for section in view.sections] == [*dashboard.LINES, *dashboard.BARS]
    assert sum(len(section.panels) for section in view.sections) == 18
    for section, logged in (("Learning a set", CVAELearner.LOGGED), ("Training a model", ClassificationTask.LOGGED)):
        for _, keys in dashboard.LINES[section]:
            assert all(any(fnmatch(key, name) for name in logged) for key in keys), keys
    dashboard.main(["me/lamps", "--models", "plain", "robust", "--to", str(tmp_path / "view.json")])
    text = (tmp_path / "view.json").read_text()
    assert [section.name for section in views.Workspace._from_model(View.model_validate_json(text)).sections][4:] == [
        "Model plain", "Model robust",
    ]  # fmt: skip
    for key in ("plain-train/loss", "robust-val/accuracy/robust", "robust/robust/p50", "plain-val/adversarial"):
        assert f'"{key}"' in text, key
    with pytest.raises(SystemExit) as stopped:
        dashboard.main(["lamps"])
    assert stopped.value.code == 2
    assert "must be ENTITY/PROJECT" in capsys.readouterr().err
