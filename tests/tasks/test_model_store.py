"""Classifiers on disk."""

import json
import shlex

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from torch import nn

import latentrobust
from latentrobust.errors import InputError
from latentrobust.networks.classifiers import build
from latentrobust.networks.registry import advice


def small():
    return build("lenet5", image_shape=[1, 16, 16], classes=3)


def saved(model, folder):
    return latentrobust.save_model(model, folder, image_shape=(1, 16, 16), classes=3, data="digits")


def test_a_saved_model_loads_the_same(tmp_path):
    model = small()
    x = torch.rand(2, 1, 16, 16)
    loaded = latentrobust.load_model(saved(model, tmp_path / "m"))
    assert not loaded.training
    torch.testing.assert_close(loaded(x), model.eval()(x))
    run = tmp_path / "run"
    saved(model, run / "model")
    torch.testing.assert_close(latentrobust.load_model(run)(x), model(x))


def test_a_run_of_several_models_names_them(tmp_path):
    for name in ("robust", "plain"):
        saved(small(), tmp_path / "models" / name / "model")
    (tmp_path / "checkpoints").mkdir()
    torch.save({"state_dict": {"weight": torch.zeros(1)}}, tmp_path / "checkpoints" / "best.ckpt")  # of its set
    with pytest.raises(InputError, match=r"holds several models \(plain, robust\): name its folder, such as .*plain"):
        latentrobust.load_model(tmp_path)
    assert latentrobust.load_model(tmp_path / "models" / "plain")


def test_a_network_from_elsewhere_needs_the_network(tmp_path):
    make = lambda: nn.Sequential(nn.Flatten(), nn.Linear(256, 3))  # noqa: E731
    model = make()
    folder = saved(model, tmp_path / "m")
    with pytest.raises(InputError, match="from outside this package"):
        latentrobust.load_model(folder)
    x = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(latentrobust.load_model(folder, network=make())(x), model(x))
    for content in (model.state_dict(), {"state_dict": model.state_dict()}, {"model_state_dict": model.state_dict()}):
        torch.save(content, tmp_path / "weights.pt")
        torch.testing.assert_close(latentrobust.load_model(tmp_path / "weights.pt", network=make())(x), model(x))


def test_tied_weights_can_be_saved(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.b = nn.Linear(4, 4)
            self.b.weight = self.a.weight

    model = Tied()
    loaded = latentrobust.load_model(saved(model, tmp_path / "m"), network=Tied())
    assert torch.equal(loaded.b.weight, model.a.weight)


def test_damaged_and_foreign_files_give_one_line(tmp_path, small_set):
    folder = saved(small(), tmp_path / "m")
    with pytest.raises(InputError, match="no model at"):
        latentrobust.load_model(tmp_path / "nowhere")
    with pytest.raises(InputError, match="weights of another model"):
        latentrobust.load_model(folder, network=nn.Linear(2, 2))
    (folder / "config.json").write_text("[]")
    with pytest.raises(InputError, match="cannot read the model"):
        latentrobust.load_model(folder)
    (folder / "config.json").write_text(json.dumps({"kind": "classifier", "network": {"name": "lenet5"}}))
    with pytest.raises(InputError, match="damaged"):
        latentrobust.load_model(folder)
    latentrobust.save_perturbation_set(small_set, tmp_path / "set")
    with pytest.raises(InputError, match="does not hold a classifier"):
        latentrobust.load_model(tmp_path / "set")
    torch.save({"a": 1}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="neither"):
        latentrobust.load_model(tmp_path / "other.pt")
    with pytest.raises(InputError, match="something other than a model"):
        saved(small(), tmp_path)


def test_the_remedy_for_a_network_from_elsewhere_can_be_pasted():
    origin = {
        "_target_": "mine.own_model", "source": "mynet.Net", "arguments": None, "weights": None, "pretrained": False,
        "mean": [0.5, 0.4], "sizes": {"depth": 3},
    }  # fmt: skip
    pasted = shlex.split(advice(origin, "model.network").partition(", with ")[2])
    found = {line.key_or_group: line.value() for line in OverridesParser.create().parse_overrides(pasted)}
    assert found == {f"model.network.{key}": value for key, value in origin.items() if value is not None}
