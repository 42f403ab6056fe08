"""Votes in bfloat16 that are cast again where they might differ are those of the float32 model."""

import pytest
import torch
from torch import nn

from latentrobust import preflight
from latentrobust.batch import Batch
from latentrobust.errors import InputError
from latentrobust.perturbation_sets import PixelBall
from latentrobust.robustness import votes
from latentrobust.robustness.assessor import Assessor, CertifySettings
from latentrobust.robustness.smoothing import SmoothedModel

SHAPE = (1, 12, 12)


class Linear(nn.Module):
    """Four classes, each of which many noisy images are close to; of images, or of 3×3 positions."""

    def __init__(self, maps: bool, scale: float) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.layer = nn.Conv2d(1, 4, 4, 4, bias=False) if maps else nn.Conv2d(1, 4, 12, bias=False)
        nn.init.normal_(self.layer.weight, std=scale)

    def forward(self, x):
        logits = self.layer(x - 0.5)
        return logits if logits.shape[-1] > 1 else logits.flatten(1)


@pytest.fixture
def anywhere(monkeypatch):
    """A device that computes in bfloat16, as far as anybody asks."""
    monkeypatch.setattr(votes, "bfloat16_is_slow", lambda device: None)


def parts(maps=False):
    x = 0.5 + 0.05 * torch.randn(7, *SHAPE, generator=torch.Generator().manual_seed(3))
    return Linear(maps, 1.0), PixelBall(SHAPE, "l2", 1.0), x


def counts(model, perturbations, x, **options):
    smoothed = SmoothedModel(model, perturbations, 0.2, **{"batch": 64, **options})
    return smoothed.certify(x, n0=50, n=1000).counts, smoothed


@pytest.mark.parametrize("maps", [False, True])
def test_votes_in_bfloat16_are_those_of_float32(anywhere, monkeypatch, maps):
    monkeypatch.setattr(votes, "PAYS", 1.0)  # a map has many positions, one of which is near a tie
    model, perturbations, x = parts(maps)
    wanted, _ = counts(model, perturbations, x)
    found, _ = counts(model, perturbations, x, bfloat16=True)
    assert torch.equal(found, wanted)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = counts(model, perturbations, x)
        again, _ = counts(model, perturbations, x, bfloat16=True)
    assert not torch.equal(rounded, wanted)
    assert torch.equal(again, wanted)  # whatever the precision around it


def test_only_votes_near_a_tie_are_cast_again(anywhere, monkeypatch):
    model, perturbations, x = parts()
    cast = []
    again = votes.Votes._again

    def counted(self, s, keys, draws, *others):
        cast.append(len(draws))
        return again(self, s, keys, draws, *others)

    monkeypatch.setattr(votes.Votes, "_again", counted)
    _, smoothed = counts(model, perturbations, x, bfloat16=True)
    assert 0 < sum(cast) < 0.1 * 1050 * len(x)
    assert smoothed._votes.bfloat16


@pytest.mark.parametrize("around", [False, True])
def test_draws_that_change_more_than_was_seen_are_all_counted_in_float32(anywhere, monkeypatch, around):
    model, perturbations, x = parts()
    wanted, _ = counts(model, perturbations, x)
    compare = votes.Votes._compare
    monkeypatch.setattr(votes.Votes, "_compare", lambda self, *given: compare(self, *given) / 30)
    with torch.autocast("cpu", torch.bfloat16, enabled=around):
        found, _ = counts(model, perturbations, x, bfloat16=True)
    assert torch.equal(found, wanted)


class Otherwise(nn.Module):
    """Answers with the other of two classes where the image begins so, under autocast alone."""

    def forward(self, x):
        logits = torch.stack([x.mean((1, 2, 3)) - 0.5, torch.zeros(len(x))], 1) * 100
        wrong = torch.is_autocast_enabled("cpu") & (logits[:, 0].abs() < 0.6) & (x[:, 0, 0, 0] > 0.65)
        return torch.where(wrong[:, None], logits.flip(1), logits)


def test_votes_that_turn_over_are_seen_where_votes_are_cast_again(anywhere, monkeypatch):
    """Their margins may be as they were: what changed is which class has which logit."""
    monkeypatch.setattr(votes.Votes, "_compare", lambda *_: 0.1)
    _, perturbations, x = parts()
    wanted, _ = counts(Otherwise(), perturbations, x)
    assert torch.equal(counts(Otherwise(), perturbations, x, bfloat16=True)[0], wanted)


@pytest.mark.parametrize("around", [False, True])
def test_where_most_votes_are_near_a_tie_float32_counts_and_says_so(anywhere, around):
    model, perturbations, x = parts(maps=True)
    nn.init.normal_(model.layer.weight, std=1e-4)
    with torch.no_grad():
        model.layer.weight += 5  # all classes alike, but for what bfloat16 rounds away
    wanted, _ = counts(model, perturbations, x)
    with pytest.warns(UserWarning, match="near a tie"), torch.autocast("cpu", torch.bfloat16, enabled=around):
        found, _ = counts(model, perturbations, x, bfloat16=True)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("cast_again", [False, True])
def test_votes_around_other_offsets_and_in_halved_batches(anywhere, monkeypatch, cast_again):
    model, perturbations, x = parts()
    keys, around = torch.arange(7), torch.randn(7, *SHAPE, generator=torch.Generator().manual_seed(4)) / 20
    logits = votes.Votes._logits
    failed = []

    def short_of_memory(self, s, u):
        if u.shape[:2].numel() > 20 and (len(u) == 1 or not cast_again):
            failed.append(list(u.shape[:2]))
            raise torch.OutOfMemoryError
        return logits(self, s, u)

    found = []
    for bfloat16 in (False, True):
        smoothed = SmoothedModel(model, perturbations, 0.2, bfloat16=bfloat16, batch=64)
        with smoothed.asking():
            found.append(smoothed._votes.count(perturbations.at(x), keys, 5, 600, around))
        monkeypatch.setattr(votes.Votes, "_logits", short_of_memory)
    assert torch.equal(*found)
    assert failed[0] == ([1, 64] if cast_again else [9, 7])  # the latter of the comparison
    assert 7 <= smoothed.batch <= 20


def test_nan_is_an_error_in_either_precision(anywhere):
    model, perturbations, x = parts()
    with torch.no_grad():
        model.layer.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(InputError, match="NaN"):
        counts(model, perturbations, x, bfloat16=True)


def test_a_device_without_bfloat16_is_refused(monkeypatch):
    model, perturbations, x = parts()
    monkeypatch.setattr(votes, "bfloat16_is_slow", lambda device: f"this {device} has none")
    with pytest.raises(InputError, match="this cpu has none; leave bfloat16=false"):
        counts(model, perturbations, x, bfloat16=True)


def test_the_command_line_refuses_it_before_any_work(monkeypatch, composed):
    cfg = composed("train", "experiment=demo", "trainer.accelerator=cpu", "evaluation.certify.bfloat16=true")
    monkeypatch.setattr(preflight, "bfloat16_is_slow", lambda device: f"this {device} has none")
    with pytest.raises(InputError, match=r"evaluation.certify.bfloat16=true: this cpu has none"):
        preflight.check_trainer(cfg)
    monkeypatch.setattr(preflight, "bfloat16_is_slow", lambda device: None)
    preflight.check_trainer(cfg)


def test_an_evaluation_has_the_same_certificates(anywhere, tmp_path):
    model, perturbations, x = parts()
    found = []
    for bfloat16 in (False, True):
        settings = CertifySettings(sigma=0.2, radii=[0.05], n=500, attack_steps=2, bfloat16=bfloat16)
        assessor = Assessor(model, perturbations, certify=settings, journal=tmp_path / f"{bfloat16}.csv")
        found.append(assessor.certificates(Batch.of(x, torch.arange(7) % 4)))
    for name, column in found[0].items():
        assert torch.equal(column, found[1][name]), name
