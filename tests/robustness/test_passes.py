"""Passes of an evaluation: what may be recorded, what a recording is given, and batches that are filled up."""

import pytest
import torch

from latentrobust.networks import classifiers, cvae, flows
from latentrobust.perturbation_sets import CVAESet, FlowSet, PixelBall, RTSSet
from latentrobust.perturbation_sets.base import SetAt
from latentrobust.robustness.passes import Passes, bears_recording, holding, tensors_of
from latentrobust.transforms import random

SHAPE = [1, 12, 12]


def structured():
    return cvae.build("structured", image_shape=SHAPE, latent=4)


SETS = {
    "pixels": lambda: PixelBall((1, 12, 12), "l2", 1.0),
    "rts": lambda: RTSSet((1, 12, 12)),
    "cvae": lambda: CVAESet(structured(), "gaussian", 2.0),
    "restricted": lambda: CVAESet(structured(), "gaussian", 2.0, active=[2, 0]),
    "flow": lambda: FlowSet(
        flows.build("fully_connected", image_shape=SHAPE, classes=3, blocks=1, hidden=4), "l2", 1.0
    ),
}


def at(kind, count=5, first=0):
    torch.manual_seed(0)
    perturbations = SETS[kind]().eval()
    x = torch.rand(count, 1, 12, 12, generator=torch.Generator().manual_seed(first))
    with torch.no_grad():
        return perturbations.at(x, torch.arange(count) % 3 if perturbations.needs_label else None)


def offsets(s, first=0):
    return s.ball.uniform(random.example_keys(first, torch.arange(len(s.x))))


@pytest.mark.parametrize("kind", list(SETS))
@torch.no_grad()
def test_a_set_is_its_tensors_and_what_stays(kind):
    one, other = at(kind), at(kind, first=1)
    own = tensors_of(other)
    assert any(tensor is other.x for tensor in own)
    u = offsets(other)
    torch.testing.assert_close(holding(one, iter(own)).decode(u), other.decode(u), rtol=0, atol=0)
    assert one.x is not other.x  # the one that is changed is a copy
    assert len(tensors_of(one)) == len(own)


def test_models_of_this_package_may_be_recorded_and_others_where_they_are_said_to():
    model, perturbations = classifiers.build("lenet5", image_shape=SHAPE), SETS["cvae"]()
    assert bears_recording(model, perturbations, None)
    assert not bears_recording(model, perturbations, False)

    class Own(torch.nn.Sequential):
        pass

    own = Own(torch.nn.Flatten(), torch.nn.Linear(144, 3))
    assert not bears_recording(own, perturbations, None)
    assert bears_recording(own, perturbations, True)
    assert bears_recording(torch.nn.Sequential(*own), perturbations, None)
    hook = model.register_forward_hook(lambda *_: None)
    assert not bears_recording(model, perturbations, None)
    hook.remove()
    assert bears_recording(model, perturbations, None)
    hook = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert not bears_recording(model, perturbations, None)
    hook.remove()
    model.forward = torch.zeros_like  # somebody's patch
    assert not bears_recording(model, perturbations, None)


def test_a_set_whose_network_is_somebodys_own_is_not_recorded():
    class Own(type(structured())):
        pass

    network = structured()
    network.__class__ = Own
    assert not bears_recording(torch.nn.Flatten(), CVAESet(network, "gaussian", 1.0), None)


@pytest.mark.parametrize(("count", "size"), [(16, 16), (15, 16), (13, 14), (1, 2), (2, 2)])
def test_searches_that_have_dropped_examples_are_filled_up_to_shares_of_the_chunk(count, size):
    passes = Passes(torch.nn.Flatten(), SETS["cvae"](), None)
    s = at("cvae", count)
    u = offsets(s).requires_grad_()
    filled, full = passes._filled_up(s, u, 16)
    assert len(full) == len(filled.x) == size
    torch.testing.assert_close(filled.decode(full)[:count], s.decode(u))
    (gradient,) = torch.autograd.grad(filled.decode(full)[:count].sum(), u)
    torch.testing.assert_close(gradient, torch.autograd.grad(s.decode(u).sum(), u)[0])
    again, _ = passes._filled_up(s, u, 16)
    assert again is filled  # what is there already is not gathered again
    assert (full is u) == (size == count)


def test_without_a_gpu_a_pass_is_the_networks_own():
    model = classifiers.build("lenet5", image_shape=SHAPE).eval()
    s = at("cvae", 3)
    u = offsets(s).requires_grad_()
    logits, images = Passes(model, SETS["cvae"](), None)(s, u, 8)
    assert isinstance(s, SetAt)
    assert not images.requires_grad
    torch.testing.assert_close(logits, model(s.decode(u)))
    assert logits.requires_grad
