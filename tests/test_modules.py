from functools import partial
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from latentrobust.errors import InputError
from latentrobust.modules import made
from latentrobust.networks.layout import channels_last
from latentrobust.preflight import check_trainer

OPEN = partial(torch.optim.Adam, lr=0.1, fused=None)


def training(precision="32-true", clip=None):
    return SimpleNamespace(precision=precision, gradient_clip_val=clip)


@pytest.mark.parametrize(
    ("optimizer", "trainer", "fused"),
    [
        (OPEN, None, True),
        (OPEN, training(), True),
        (OPEN, training("bf16-mixed"), True),
        (OPEN, training(clip=1.0), True),
        (OPEN, training("bf16-mixed", clip=1.0), None),
        (partial(OPEN, fused=False), training(), False),
        (partial(torch.optim.Adam, lr=0.1), training(), None),
        (partial(torch.optim.AdamW, lr=0.1, fused=None), training(), True),
    ],
)
def test_one_kernel_for_all_parameters_where_that_was_left_open(optimizer, trainer, fused):
    found = made(optimizer, nn.Linear(3, 2).parameters(), trainer)
    assert found.param_groups[0]["fused"] is fused


def test_optimisers_that_know_no_such_thing_are_left_alone():
    assert isinstance(made(partial(torch.optim.Adamax, lr=0.1), nn.Linear(3, 2).parameters(), None), torch.optim.Adamax)
    given = made(torch.optim.SGD, nn.Linear(3, 2).parameters(), None)
    assert isinstance(given, torch.optim.SGD)


def test_one_kernel_computes_what_separate_ones_do():
    weights = []
    for fused in (None, False):
        torch.manual_seed(0)
        network = nn.Linear(5, 3)
        optimizer = made(partial(OPEN, fused=fused), network.parameters(), None)
        for _ in range(10):
            optimizer.zero_grad()
            network(torch.ones(2, 5)).square().sum().backward()
            optimizer.step()
        weights.append(network.weight.detach())
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("saved", [False, True])
def test_moments_follow_the_layout_that_weights_have_now(saved):
    """A fused kernel takes both for the same, and would update other weights without a word."""
    found = []
    for resumed in (False, True):
        torch.manual_seed(0)
        network = channels_last(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)), saved)
        optimizer = made(OPEN, network.parameters(), None)
        for step in range(6):
            if step == 3 and resumed:
                state, weights = optimizer.state_dict(), network.state_dict()
                network = channels_last(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)), not saved)
                network.load_state_dict(weights)
                optimizer = made(OPEN, network.parameters(), None)
                optimizer.load_state_dict(state)
            optimizer.zero_grad()
            network(torch.linspace(0, 1, 2 * 3 * 64).reshape(2, 3, 8, 8)).square().sum().backward()
            optimizer.step()
        found.append(torch.cat([weight.detach().flatten() for weight in network.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def configured(**trainer):
    return OmegaConf.create({"trainer": trainer, "learner": {"optimizer": {"fused": True}}, "launcher": {}})


def test_a_fused_optimiser_that_was_asked_for_cannot_clip_in_half_precision():
    check_trainer(configured(gradient_clip_val=1.0, accelerator="cpu"))
    check_trainer(configured(precision="bf16-mixed", accelerator="cpu"))
    with pytest.raises(InputError, match=r"learner\.optimizer\.fused=true.*cannot be clipped.*fused=null"):
        check_trainer(configured(gradient_clip_val=1.0, precision="bf16-mixed", accelerator="cpu"))


def test_machines_with_clocks_of_their_own_need_a_folder_that_is_named():
    cfg = configured(accelerator="cpu", num_nodes=2)
    cfg.paths = {"output_dir": "outputs/digits/2026-11-27_13-09-00-123456"}
    with pytest.raises(InputError, match=r"trainer\.num_nodes=2: .*give paths\.output_dir"):
        check_trainer(cfg)
    cfg.paths.output_dir = "outputs/two"
    check_trainer(cfg)


def test_tasks_of_srun_need_a_folder_that_is_named(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    cfg = configured(accelerator="cpu", devices=2)
    cfg.paths = {"output_dir": "outputs/digits/2026-11-27_13-09-00-123456"}
    with pytest.raises(InputError, match=r"srun has started 2 tasks: each would name .*give paths\.output_dir"):
        check_trainer(cfg)
    for shared, tasks, folder in ((1, "2", cfg.paths.output_dir), (2, "1", cfg.paths.output_dir), (2, "2", "named")):
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", tasks)
        cfg.trainer.devices, cfg.paths.output_dir = shared, folder
        check_trainer(cfg)


def test_a_cpu_that_only_emulates_bfloat16_is_named(monkeypatch, caplog):
    for able, said in (({"avx512_bf16": True}, 0), ({}, 1)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: {"architecture": "x86_64", **able})
        caplog.clear()
        check_trainer(configured(precision="bf16-mixed", accelerator="cpu"))
        assert caplog.text.count("slower than float32") == said
