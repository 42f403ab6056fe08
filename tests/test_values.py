"""Configurations against the signatures of what they instantiate."""

import inspect
import re

import pytest
from omegaconf import OmegaConf

from latentrobust.arguments import Positive, RadiusName, check, hints_of, maker_of
from latentrobust.configuration import CONF
from latentrobust.errors import InputError
from latentrobust.overrides import quoted_coverage, undashed
from latentrobust.values import _located, check_values

NAMED = re.compile(r"_target_: *(latentrobust\.[\w.]+)")
TARGETS = sorted({target for path in CONF.rglob("*.yaml") for target in NAMED.findall(path.read_text())})


@pytest.mark.parametrize("target", TARGETS)
def test_every_option_has_an_annotation_that_can_be_checked(target):
    """A name that only type checkers import would switch the checks of a part off without a word."""
    made = _located(target)
    named = {
        name
        for name, parameter in inspect.signature(maker_of(made)).parameters.items()
        if name != "self" and parameter.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    }
    assert named <= set(hints_of(made)), named - set(hints_of(made))


def test_there_are_targets():
    assert len(TARGETS) > 50
    assert "latentrobust.robustness.attacks.PGD" in TARGETS


def configuration(**changed):
    whole = {"data": {"_target_": "latentrobust.data.pairs.formulas.FormulaPairs"}, "evaluation": {}, "trainer": None}
    whole["trainer"] = {"_target_": "pytorch_lightning.Trainer", "max_epochs": 3}
    return OmegaConf.create({**whole, **changed})


def test_whole_numbers_become_whole_in_place():
    cfg = configuration(
        seed=1e3, trainer={"_target_": "pytorch_lightning.Trainer", "max_epochs": "${epochs}"}, epochs=2e0
    )
    check_values(cfg)
    assert cfg.seed == 1000
    assert type(cfg.trainer.max_epochs) is int
    share = configuration(trainer={"_target_": "pytorch_lightning.Trainer", "limit_train_batches": 1.0})
    check_values(share)
    assert type(share.trainer.limit_train_batches) is float  # all batches, not one


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": None}, "data=null leaves nothing to work with: choose one, such as data=digits"),
        ({"paths": None}, "paths=null leaves nothing"),
        ({"trainer": 3}, "trainer must be a group of options, got 3"),
        ({"callbacks": {"best": 3}}, "callbacks.best must be an object with a _target_, or null; got 3"),
        ({"learner": {"_target_": "torch.optim.Adam", "lr": -1.0}}, "learner.lr must be a number above 0, got -1.0"),
        ({"learner": {"_target_": "torch.optim.Adam", "betas": [0.9]}}, "learner.betas must be a list of 2"),
        ({"learner": {"_target_": "torch.optim.Adam", "rate": 1}}, "learner.rate: Adam has no option rate; there are"),
        (
            {"learner": {"_target_": "torch.optim.Adam", "betas": "${pair}"}, "pair": [0.9]},
            "learner.betas must be a list of 2, got [0.9]; it is taken from pair",
        ),
        (
            {"learner": {"_target_": "torch.optim.Adam", "betas": [0.9, "${seed}"]}, "seed": 7},
            "learner.betas must be a list whose entry 1 is a number at least 0 and at most 1, got [0.9, 7]; it is taken"
            " from seed",
        ),
        ({"seed": 2**32}, "seed must be a whole number at least 0 and at most 4294967295"),
    ],
)
def test_what_does_not_fit_is_named_by_its_key(changed, message):
    with pytest.raises(InputError) as error:
        check_values(configuration(**changed))
    assert message in str(error.value)


def test_what_cannot_be_imported_is_left_to_who_instantiates_it():
    check_values(configuration(model={"_target_": "no.such.Thing", "x": 1}))


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("learner.radius=coverage=0.9", "learner.radius='coverage=0.9'"),
        ("evaluation.robust.radii=[0,coverage=.5,full]", "evaluation.robust.radii=[0,'coverage=.5',full]"),
        ("learner.radius='coverage=0.9'", "learner.radius='coverage=0.9'"),
        ('learner.radius="coverage=0.9"', 'learner.radius="coverage=0.9"'),
        ("data=pairs", "data=pairs"),
        ("evaluation.quality.coverage=null", "evaluation.quality.coverage=null"),
        ("--cfg", "--cfg"),
        ("paths.output_dir='/x/coverage=0.9/a'", "paths.output_dir='/x/coverage=0.9/a'"),
        ('name="set, coverage=0.9"', 'name="set, coverage=0.9"'),
        ("a=['coverage=0.5',coverage=0.6]", "a=['coverage=0.5','coverage=0.6']"),
        (r"a='it\'s coverage=0.5'", r"a='it\'s coverage=0.5'"),
    ],
)
def test_radii_called_coverage_can_be_typed_without_quotes(argument, expected):
    assert quoted_coverage(argument) == expected


@pytest.mark.parametrize("radius", ["coverage=0.95", "coverage=1", "p95", "full", 2.5])
def test_names_of_radii_are_taken(radius):
    assert check(radius, Positive | RadiusName, "radius") == radius


@pytest.mark.parametrize("radius", ["coverage=95", "coverage=", "p99", "max", "coverage=0.9 ", -1.0])
def test_other_names_of_radii_are_refused(radius):
    with pytest.raises(InputError, match="radius must be"):
        check(radius, Positive | RadiusName, "radius")


def test_a_sweep_is_asked_for_before_its_options():
    """Hydra's parser takes options in one piece, and says of the others that it does not know them."""
    for arguments in (["-m", "a=1", "b=2"], ["a=1", "b=2", "-m"], ["--config-dir", "c", "--multirun", "a=1"]):
        assert undashed(arguments) == arguments
    with pytest.raises(InputError, match=r"^-m stands in front of all options: -m experiment=demo …$"):
        undashed(["experiment=demo", "-m", "seed=1,2"])


def test_a_folder_is_not_named_by_nothing():
    for argument in ("paths.output_dir=", "paths.output_dir=''", "+hydra.run.dir="):
        with pytest.raises(InputError, match="is empty: name a folder"):
            undashed([argument])
    undashed(["paths.output_dir=x", "name=", "from="])
