import numpy as np
import pytest
import torch
from torchmetrics import Metric

from latentrobust.data.images import digits
from latentrobust.perturbation_sets import PixelBall, RTSSet
from latentrobust.perturbation_sets.likelihood import checked, pixel_loss, squared_error
from latentrobust.perturbation_sets.quality import (
    ActiveUnits,
    LatentNorms,
    PairValues,
    QualitySettings,
    log_likelihood,
    measure_quality,
    pgd_error,
    summarise_norms,
)
from latentrobust.transforms.affine import pad_to
from latentrobust.transforms.random import example_keys

QUICK = QualitySettings(steps=10, likelihood_draws=4)


def quality(perturbations, x, x_tilde, settings=QUICK, offset=None, keys=None):
    keys = example_keys(0, torch.arange(len(x))) if keys is None else keys
    return measure_quality(
        perturbations.at(x),
        x_tilde,
        ball=perturbations.ball,
        likelihood=perturbations.likelihood,
        keys=keys,
        settings=settings,
        offset=offset,
    )


def test_exact_rts_set_has_zero_approximation_error_on_its_own_pairs():
    x = pad_to(digits().test.images[:16].float() / 255, 42)
    perturbations = RTSSet((1, 42, 42))
    offset = perturbations.at(x).sample(1, example_keys(5, torch.arange(16)))[0]
    x_tilde = perturbations.transform.apply(x, offset)
    found = quality(perturbations, x, x_tilde, offset=offset)
    for name in ("encoder_ae", "pgd_ae", "reconstruction"):
        assert found[name].max() <= 1e-6
    assert found["over_ae"].mean() > found["expected_ae"].mean() > 1e-2
    assert "kl" not in found


def test_order_of_the_errors(small_set):
    x, x_tilde = torch.rand(6, 1, 8, 8), torch.rand(6, 1, 8, 8)
    found = quality(small_set, x, x_tilde)
    for suffix in ("", "_nll"):
        assert (found[f"pgd_ae{suffix}"] <= found[f"encoder_ae{suffix}"] + 1e-7).all()
        assert (found[f"over_ae{suffix}"] >= found[f"pgd_ae{suffix}"]).all()
        # The farthest point of a set whose images lie in [0, 1] is no nearer than a random one.
        assert (found[f"over_ae{suffix}"] >= found[f"expected_ae{suffix}"] - 1e-6).float().mean() >= 0.8
    assert all(value.shape == (6,) for value in found.values())


def test_values_do_not_depend_on_the_batch(small_set):
    x, x_tilde, keys = torch.rand(6, 1, 8, 8), torch.rand(6, 1, 8, 8), example_keys(0, torch.arange(6))
    together = quality(small_set, x, x_tilde, keys=keys)
    parts = [quality(small_set, x[i : i + 2], x_tilde[i : i + 2], keys=keys[i : i + 2]) for i in (0, 2, 4)]
    for name, value in together.items():
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), value, atol=1e-5, rtol=1e-4)


def test_own_likelihood_of_a_gaussian_is_the_squared_error():
    perturbations = PixelBall((1, 8, 8), "linf", 0.2)
    x = torch.rand(3, 1, 8, 8)
    found = quality(perturbations, x, torch.rand(3, 1, 8, 8))
    assert torch.equal(found["pgd_ae"], found["pgd_ae_nll"])


def test_a_larger_ball_has_no_nearer_farthest_point(small_set):
    """Where a search alone may well end nearer: it begins where the smaller ball's has ended."""
    x, x_tilde = torch.rand(6, 1, 8, 8), torch.rand(6, 1, 8, 8)
    settings = QualitySettings(steps=0, likelihood_draws=0)
    smaller, found = {}, []
    for radius in (0.5, 3.0, 3.0):
        keys = example_keys(len(found), torch.arange(6))  # another draw to begin at
        found.append(measure_quality(
            small_set.at(x), x_tilde, ball=small_set.ball.with_radius(radius), likelihood="bernoulli", keys=keys,
            settings=settings, smaller=smaller,
        ))  # fmt: skip
    assert (found[1]["over_ae"] >= found[0]["over_ae"]).all()
    assert (found[2]["over_ae"] >= found[1]["over_ae"]).all()
    alone = quality(small_set, x, x_tilde, settings, keys=example_keys(2, torch.arange(6)))
    assert (alone["over_ae"] < found[1]["over_ae"]).any()


def test_over_error_of_a_pixel_ball_has_a_closed_form():
    # With the target outside the ball the farthest point moves every pixel by 0.1 away from it.
    x = torch.full((2, 1, 4, 4), 0.5)
    x_tilde = x + torch.where(torch.rand_like(x) > 0.5, 0.2, -0.2)
    perturbations = PixelBall((1, 4, 4), "linf", 0.1)
    found = quality(perturbations, x, x_tilde, QualitySettings(likelihood_draws=0))
    torch.testing.assert_close(found["over_ae"], torch.full((2,), 0.3**2), atol=1e-5, rtol=1e-3)
    assert "log_likelihood" not in found


def test_pgd_error_of_a_linear_decoder_matches_its_closed_form():
    # Pixel l2 ball: the nearest point lies on the segment to the target, at the radius.
    perturbations = PixelBall((1, 4, 4), "l2", 0.2)
    x = torch.full((3, 1, 4, 4), 0.5)
    x_tilde = x + 0.1 * torch.randn(3, 1, 4, 4).clamp(-2, 2)
    s = perturbations.at(x)
    distance = perturbations.ball.size(x_tilde - x)
    expected = (distance - 0.2).clamp_min(0).square() / 16
    found = pgd_error(
        s, x_tilde, torch.zeros_like(x), perturbations.ball, squared_error, steps=50, relative_step=0.05
    ).values
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-2)


def test_what_a_set_contains_has_no_pgd_error():
    """Of a ball that holds the perturbed images: steps of one length, as published, measure their own length."""
    perturbations = PixelBall((1, 4, 4), "l2", 1.0)
    x = torch.full((3, 1, 4, 4), 0.5)
    x_tilde, observed = x + 0.1 * torch.rand_like(x), torch.zeros_like(x)
    found = {
        halving: pgd_error(
            perturbations.at(x), x_tilde, observed, perturbations.ball, squared_error,
            **QualitySettings(halving=halving).search,
        ).values
        for halving in (True, False)
    }  # fmt: skip
    assert (found[True] < 1e-8).all()
    assert found[False].mean() > 1e-6


def test_halving_is_for_the_nearest_image_alone(small_set):
    """Towards the farthest one, shrinking steps stay at nearer maxima."""
    x, x_tilde = torch.rand(4, 1, 8, 8), torch.rand(4, 1, 8, 8).round()
    halved, fixed = (
        quality(small_set, x, x_tilde, QualitySettings(likelihood_draws=0, halving=halving))
        for halving in (True, False)
    )
    assert torch.equal(halved["over_ae"], fixed["over_ae"])
    assert not torch.equal(halved["pgd_ae"], fixed["pgd_ae"])


def test_log_likelihood_is_the_log_mean_exp_of_draws(small_set, monkeypatch):
    x, x_tilde, keys = torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8).round(), example_keys(0, torch.arange(2))
    s = small_set.at(x)
    monkeypatch.setattr("latentrobust.perturbation_sets.quality.VALUES_AT_ONCE", 3 * x_tilde.numel())  # draws a pass
    found = log_likelihood(s, x_tilde, s.ball, "bernoulli", draws=7, keys=keys)
    decoded = s.decode(s.sample(7, keys))
    log_p = torch.distributions.Bernoulli(decoded).log_prob(x_tilde).sum((-3, -2, -1))
    torch.testing.assert_close(found, log_p.double().exp().mean(0).log().float(), rtol=1e-4, atol=1e-3)
    gaussian = log_likelihood(s, x_tilde, s.ball, "gaussian", draws=1, keys=keys)
    expected = torch.distributions.Normal(s.decode(s.sample(1, keys))[0], 1.0).log_prob(x_tilde).sum((-3, -2, -1))
    torch.testing.assert_close(gaussian, expected, rtol=1e-4, atol=1e-3)


def test_the_bernoulli_loss_takes_what_interpolation_leaves_above_one():
    above = torch.full((1, 1, 2, 2), 1 + 1.2e-7)
    assert (above > 1).all()
    assert pixel_loss("bernoulli", above, above).abs().max() < 1e-5


def test_likelihood_names_are_checked():
    with pytest.raises(ValueError, match="poisson"):
        checked("poisson")


def test_bernoulli_loss_has_a_gradient_where_bfloat16_would_saturate():
    decoded = torch.tensor([[[[0.9999]]]], requires_grad=True)
    pixel_loss("bernoulli", decoded, torch.zeros(1, 1, 1, 1)).sum().backward()
    assert decoded.grad.item() > 100


@pytest.mark.parametrize("changed", [{"steps": -1}, {"draws": 0}, {"relative_step": 0.0}, {"likelihood_draws": -1}])
def test_impossible_settings_are_refused(changed):
    with pytest.raises(ValueError, match=r"QualitySettings: .* must be"):
        QualitySettings(**changed)


def test_pair_values_average_in_any_batches_and_keep_the_table_in_order():
    metric = PairValues(["error"])
    values = torch.rand(10)
    order = torch.randperm(10)
    for part in order.split(3):
        metric.update(part, torch.zeros_like(part), error=values[part])
    assert metric.compute()["error"] == pytest.approx(values.double().mean().item(), rel=1e-6)
    np.testing.assert_array_equal(metric.table()["index"], np.arange(10))
    np.testing.assert_array_equal(metric.table()["error"], values.numpy())


def test_latent_norms_overall_and_by_kind():
    metric = LatentNorms(("near", "far"))
    metric.update(torch.tensor([1.0, 2.0, 10.0]), torch.tensor([0, 0, 1]))
    metric.update(torch.tensor([3.0]), torch.tensor([0]))
    found = metric.compute()
    assert found["max"] == 10
    assert found["mean"] == 4
    assert found["near/p50"] == 2
    assert found["far/max"] == 10
    assert summarise_norms(np.array([1.0, 2.0, 3.0, 4.0]))["p25"] == 1.75


def test_active_units_counts_what_varies():
    metric = ActiveUnits(3)
    prior = torch.randn(500, 3)
    shift = torch.randn(500, 3) * torch.tensor([1.0, 0.05, 0.5])
    for part in torch.arange(500).split(100):
        metric.update(prior[part] + shift[part], prior[part])
    assert metric.compute() == 2


def test_metrics_reduce_over_processes_like_one_process(monkeypatch):
    one, two = PairValues(["error"]), [PairValues(["error"]) for _ in range(2)]
    values = torch.rand(11)
    index = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2, 3, 4, 5])  # an image may have several pairs of one kind
    one.update(index, index * 0, error=values)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    for rank, metric in enumerate(two):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        for part in torch.arange(11)[rank::2].split(2):
            metric.update(index[part], index[part] * 0, error=values[part])
    monkeypatch.undo()
    merged = PairValues(["error"])
    for name in (*merged.names, "place"):
        setattr(merged, name, [torch.cat([torch.cat(getattr(metric, name)) for metric in two])])
    merged._update_count = 1
    assert merged.compute() == one.compute()
    np.testing.assert_array_equal(merged.table()["error"], values.numpy())
    assert list(merged.table()) == ["index", "kind", "error"]
    assert one.compute()["error"] == pytest.approx(float(values.mean()))


def test_a_process_without_pairs_sends_none_of_the_dtype_that_others_send(monkeypatch):
    monkeypatch.setattr(Metric, "sync", lambda *_, **__: None)
    empty, full = PairValues(["label", "norm"]), PairValues(["label", "norm"])
    full.update(torch.arange(3), torch.zeros(3).long(), label=torch.tensor([7, 8, 9]), norm=torch.rand(3))
    for metric in (empty, full):
        metric.sync()
    for name in ("index", "kind", "label", "norm"):
        states = torch.cat(getattr(empty, name) + getattr(full, name))
        assert states.dtype == getattr(empty, name)[0].dtype == getattr(full, name)[0].dtype
    assert full.table()["label"].dtype == np.int64
    assert full.table()["norm"].dtype == np.float32
