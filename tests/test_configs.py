"""Every configuration composes, resolves, and builds what it names."""

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from latentrobust.app import CONF, resolved
from latentrobust.perturbation_sets import PerturbationSet
from latentrobust.tasks.quality import QualityTest

EXPERIMENTS = sorted(str(f.relative_to(CONF / "experiment").with_suffix("")) for f in CONF.glob("experiment/**/*.yaml"))


def options(group):
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiments_build(composed, experiment):
    cfg = composed("train", f"experiment={experiment}", "paths.output_dir=x")
    configuration = resolved(cfg)
    assert configuration["name"] == experiment
    learner = instantiate(cfg.learner, _convert_="all")
    exact = instantiate(cfg.evaluation.quality.exact, _convert_="all")
    assert learner.network.image_shape == exact.image_shape
    assert learner.scheduler.epochs[-1] == learner.beta.epochs[-1] == cfg.trainer.max_epochs
    assert instantiate(cfg.data, _convert_="all").name == cfg.data.name
    assert {callback._target_ for callback in cfg.callbacks.values()}


def test_table_4_schedules(composed):
    """The published schedules, as values of learning rate and β at some epochs."""
    expected = {
        "mnist/linf_fc": (20, {5: (5e-4, 1e-3), 10: (1e-3, 4e-3), 20: (1e-4, 1e-2)}),
        "mnist/linf_conv": (20, {15: (5e-4, 7e-3)}),
        "mnist/rts": (100, {10: (2e-4, 0.01), 40: (8e-4, 0.01 + 0.99 * 0.75), 70: (4e-4, 1.0)}),
        "mnist/rts_1": (100, {100: (0.0, 1.0)}),
    }
    for experiment, (epochs, points) in expected.items():
        cfg = composed("train", f"experiment={experiment}", "paths.output_dir=x")
        learner = instantiate(cfg.learner, _convert_="all")
        assert cfg.trainer.max_epochs == epochs
        assert cfg.data.batch_size == 128
        for epoch, (lr, beta) in points.items():
            assert learner.scheduler(epoch) * cfg.learner.optimizer.lr == pytest.approx(lr)
            assert learner.beta(epoch) == pytest.approx(beta)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_training_experiments_can_be_named_for_evaluation(composed, experiment):
    cfg = composed("evaluate", f"experiment={experiment}", "perturbation_set.path=x", "paths.output_dir=x")
    assert resolved(cfg)["perturbation_set"]["path"] == "x"


@pytest.mark.parametrize(
    ("group", "name"),
    [
        (group, name)
        for group in ("logger", "trainer", "debug", "data", "learner/network", "evaluation")
        for name in options(group)
    ],
)
def test_every_option_composes(composed, group, name):
    linf = ["data/perturbation=linf"] if name == "quality_linf" else []
    assert resolved(composed("train", f"{group}={name}", "paths.output_dir=x", *linf))


@pytest.mark.parametrize("name", ["rts", "pixel_ball"])
def test_exact_sets_can_be_evaluated(composed, name):
    cfg = composed("evaluate", f"perturbation_set={name}", "paths.output_dir=x")
    assert isinstance(instantiate(cfg.perturbation_set, _convert_="all"), PerturbationSet)


def test_evaluation_builds_its_test(composed, small_set):
    cfg = composed("train", "paths.output_dir=x")
    test = instantiate(cfg.evaluation, perturbations=small_set, _convert_="all")
    assert isinstance(test, QualityTest)
    assert test.settings.steps == 50
    assert test.settings.relative_step == 0.05
    assert test.settings.draws == 5


def test_optimizers_and_schedulers_can_be_exchanged(composed):
    overrides = ["optimizer@learner.optimizer=adamw", "scheduler@learner.scheduler=constant", "paths.output_dir=x"]
    cfg = composed("train", *overrides)
    assert OmegaConf.to_container(cfg.learner.optimizer)["_target_"].endswith("AdamW")
    assert instantiate(cfg.learner.scheduler)(50.0) == 1.0
