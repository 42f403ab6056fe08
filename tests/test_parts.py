import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from latentrobust.errors import collecting
from latentrobust.parts import Part, key_of
from latentrobust.stages import _warn_cut_short

CONFIGURATION = {
    "seed": 0, "data": {"name": "digits", "root": "/data/a"}, "learner": {"lr": 1e-3, "bad": float("nan")},
    "paths": {"output_dir": "/runs/a", "data_dir": "/data"}, "callbacks": {"progress": {"x": 1}, "best": {"y": 2}},
}  # fmt: skip


def test_a_key_is_what_may_change_the_result():
    key = key_of(CONFIGURATION, ("seed", "data", "learner", "callbacks"), weights="abc")
    assert key["seed"] == 0
    assert key["weights"] == "abc"
    assert "callbacks.progress.x" not in key
    moved = {**CONFIGURATION, "data": {"name": "digits", "root": "/other/a"}}
    moved["paths"] = {"output_dir": "/runs/b", "data_dir": "/other"}
    assert key_of(moved, ("seed", "data", "learner", "callbacks"), weights="abc") == key
    assert key_of({**CONFIGURATION, "seed": 1}, ("seed",)) != key_of(CONFIGURATION, ("seed",))


def test_a_part_is_new_begun_or_finished(tmp_path):
    key = {"a": 1.0}
    part = Part(tmp_path, "set", key)
    assert not part.is_begun
    part.begin()
    assert Part(tmp_path, "set", key).is_begun
    assert not Part(tmp_path, "set", key).is_finished
    assert not Part(tmp_path, "set", {"a": 2.0}).is_begun
    table = {"index": np.arange(3), "right": np.array([True, False, True]), "loss": np.array([0.5, np.nan, 1.0])}
    part.finish({"x": 1.5}, {"table": table, "none": None, "images": torch.ones(2, 2), "radii": (0.1, 0.2)})
    again = Part(tmp_path, "set", key)
    assert again.is_finished
    assert again.result == {"x": 1.5}
    values = again.values()
    for name, column in table.items():
        assert values["table"][name].dtype == column.dtype
        np.testing.assert_array_equal(values["table"][name], column)
    assert values["radii"] == (0.1, 0.2)
    assert values["none"] is None


def test_damage_means_doing_it_again(tmp_path):
    part = Part(tmp_path, "test", {})
    part.finish({}, {"table": np.ones(3)})
    values = next(tmp_path.rglob("*.pt"))
    values.write_bytes(values.read_bytes()[:50])
    assert Part(tmp_path, "test", {}).is_begun
    assert not Part(tmp_path, "test", {}).is_finished
    next(tmp_path.rglob("*.json")).write_text("{")
    assert not Part(tmp_path, "test", {}).is_begun


@pytest.mark.parametrize(
    ("changed", "said"),
    [({}, False), ({"current_epoch": 2}, True), ({"current_epoch": 2, "max_steps": 40}, False),
     ({"current_epoch": 2, "max_steps": 50}, True), ({"current_epoch": 0, "fast_dev_run": 1}, False),
     ({"current_epoch": 0, "num_training_batches": 0}, False),
     ({"current_epoch": 3, "should_stop": True, "ready": 4}, True), ({"should_stop": True, "ready": 8}, False)],
)  # fmt: skip
def test_training_that_is_cut_short_is_said(changed, said):
    usual = {"max_epochs": 5, "current_epoch": 5, "max_steps": -1, "global_step": 40, "fast_dev_run": False}
    usual |= {"num_training_batches": 8, "should_stop": False, "ready": 8, **changed}
    progress = SimpleNamespace(current=SimpleNamespace(ready=usual.pop("ready")))
    loops = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    with collecting() as found, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _warn_cut_short(SimpleNamespace(**usual, fit_loop=loops))
    assert [line.startswith("training was ended after 2 of 5 epochs") for line in found] == [True] * said
