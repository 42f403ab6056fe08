"""Learn a perturbation set with a conditional VAE."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from latentrobust.arguments import NonNegative, Positive, RadiusRule, Seed, validated
from latentrobust.batch import Batch
from latentrobust.data.module import PairData
from latentrobust.errors import InputError
from latentrobust.graphs import GraphedLoss
from latentrobust.keys import Purpose
from latentrobust.modules import Optimizer, Scheduled
from latentrobust.networks import layout
from latentrobust.networks.cvae.base import CVAE, Gaussian
from latentrobust.perturbation_sets.ball import LatentBall
from latentrobust.perturbation_sets.cvae import CVAESet
from latentrobust.perturbation_sets.likelihood import IMAGE_DIMS, checked, pixel_loss, squared_error
from latentrobust.perturbation_sets.quality import ActiveUnits, LatentNorms, encoder_error, expected_error, shown_norms
from latentrobust.perturbation_sets.store import CHECKPOINT_KEY, describe_cvae, load_perturbation_set
from latentrobust.schedules import Schedule, end, now
from latentrobust.seen import note_seen, seen_by
from latentrobust.transforms import random


@validated
class CVAELearner(Scheduled):
    """Minimises ``reconstruction + β·KL`` (Wong & Kolter, eq. 6).

    Both terms are summed over pixels or latents; logged values are averages over the batch. What is differentiated is
    the sum over the batch of all processes, as in the published code, so that weight decay, the optimiser's ε and
    gradient clipping mean the same.

    Each validation selects the radius (the largest latent norm, appendix C) and logs the loss at the *final* β, which
    compares epochs that were trained with different ones; checkpoints carry radius and norms with the weights.

    Args:
        network: the CVAE.
        likelihood: ``"bernoulli"`` or ``"gaussian"``.
        optimizer: called with the parameters; its learning rate is the peak.
        scheduler: the factor of the peak learning rate at a moment, set at every step.
        beta: the weight of the KL term at a moment.
        radius: of the set: ``max``, the largest latent norm of the validation pairs; a percentile of these norms
            (``p95``); the smallest that contains a share of the validation pairs (``coverage=0.95``); or a number.
        latents: ``"active"`` restricts the learned set to the latents that tell something of the validation pairs and
            change something (`latentrobust.perturbation_sets.activity`): noise in fewer latents has a smaller norm.
        init_from: a stored set (a run's folder, a set's, a checkpoint) whose weights to begin with: fine-tuning, also
            for images of another size where the weights do not depend on it; null for random weights.
        spread: weight of a penalty on draws from the set that change an image more than any observed perturbation of
            the batch does (`excess`); 0 leaves it out, as published, and None takes what suits the network. Between the
            observed perturbations nothing else keeps a generator from images that no perturbation makes.
        channels_last: lay the network's weights out as convolutions like them best; None for networks of this package.
        cuda_graphs: record the losses and their gradients on a GPU, and start their kernels together.
        seed: of the posterior samples, drawn by (seed, epoch, example).

    Raises:
        ValueError: for another likelihood.
        InputError: for an ``init_from`` that cannot be read, or holds weights of another network.
    """

    def __init__(
        self,
        network: CVAE,
        likelihood: str,
        optimizer: Optimizer,
        scheduler: Schedule,
        beta: Schedule,
        radius: Positive | RadiusRule = "max",
        latents: Literal["all", "active"] = "all",
        init_from: str | None = None,
        spread: NonNegative | None = None,
        channels_last: bool | None = None,
        cuda_graphs: bool = True,
        seed: Seed = 0,
    ) -> None:
        super().__init__(optimizer, scheduler, cuda_graphs)
        if init_from is not None:
            _take_weights(network, init_from)
        self.network = layout.channels_last(network, channels_last)
        self.likelihood = checked(likelihood)
        self.beta, self.spread, self.seed = beta, network.spread if spread is None else spread, seed
        self.radius_rule, self.latents = radius, latents
        self.radius: float | None = None
        self.latent_norms: dict[str, float] = {}
        self.norms = LatentNorms()
        self.units = ActiveUnits(math.prod(network.latent_shape))
        self._sampled: Batch | None = None
        self.loss = GraphedLoss(self._loss, self.network, self.records)

    LOGGED = (
        *(f"train/{name}" for name in ("loss", "reconstruction", "kl", "excess", "beta", "lr")),
        *(f"val/{name}" for name in ("loss", "reconstruction", "kl", "encoder_ae", "expected_ae", "radius")),
        "val/active_units", "val/latent_norm/*",
    )  # fmt: skip

    def setup(self, stage: str) -> None:
        """Check that data and network fit."""
        data: PairData = self.trainer.datamodule  # type: ignore[attr-defined]
        self.check_data(data)
        self.data_name = data.name
        self.norms.kind_names = data.kinds

    def check_data(self, data: PairData) -> None:
        """Refuse data that the network does not fit.

        Raises:
            InputError: naming both.
        """
        if tuple(data.image_shape) != self.network.image_shape:
            raise InputError(
                f"data {data.name} has images {list(data.image_shape)}, the network is for"
                f" {list(self.network.image_shape)}: choose another learner/network, data.canvas or data.size"
            )
        if not data.has_pairs:
            raise InputError(
                f"data {data.name} has no pairs to learn from: choose data/perturbation=…, or learner=flow"
            )

    @property
    def trained(self) -> nn.Module:
        """The network."""
        return self.network

    def losses(self, pairs: Batch, purpose: Purpose = Purpose.LEARNING) -> tuple[Tensor, Tensor, Gaussian, Gaussian]:
        """Reconstruction error of a posterior sample, summed over pixels, and KL, each ``[B]``; posterior and prior."""
        return self._losses(pairs.x, pairs.perturbed, self._keys(pairs, purpose))

    def _keys(self, pairs: Batch, purpose: Purpose) -> Tensor:
        return random.example_keys(self.seed, pairs.index, purpose, pairs.epoch)

    def _losses(self, x: Tensor, perturbed: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Gaussian, Gaussian]:
        prior = self.network.encode_prior(x)
        posterior = self.network.encode_posterior(x, perturbed)
        z = posterior.mean + posterior.std * random.normal(keys, self.network.latent_shape)
        error = pixel_loss(self.likelihood, self.network.generate(x, z), perturbed).sum(IMAGE_DIMS)
        return error, posterior.kl(prior), posterior, prior

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One batch's loss at the current β."""
        beta = self.beta(now(self, batch_idx))
        loss, reconstruction, kl, excess = self.batch_loss(batch, beta)
        values = {"train/excess": excess} if self.spread else {}
        values |= {"train/loss": loss.detach() / len(batch.index), "train/reconstruction": reconstruction}
        values |= {"train/kl": kl}
        self.log_means(values, len(batch.index))
        self.log_rate(beta=beta)
        self.of_step = {"loss": values["train/loss"]}
        # DDP averages over processes, and Lightning over accumulated batches.
        return loss * self.trainer.world_size * self.trainer.accumulate_grad_batches

    def batch_loss(self, batch: Batch, beta: float) -> tuple[Tensor, ...]:
        """What is differentiated, a sum over the batch; and means of reconstruction error, KL and excess."""
        keys = (self._keys(batch, purpose) for purpose in (Purpose.LEARNING, Purpose.LEARNING_SPREAD))
        # The weight is a tensor, so that a recorded step can be given another one.
        weight = torch.full((), beta, dtype=batch.x.dtype, device=batch.x.device)
        return self.loss(batch.x, batch.perturbed, weight, *keys)

    def _loss(self, x: Tensor, perturbed: Tensor, beta: Tensor, keys: Tensor, of_spread: Tensor) -> tuple[Tensor, ...]:
        reconstruction, kl, posterior, prior = self._losses(x, perturbed, keys)
        loss = (reconstruction + beta * kl).sum()
        excess = torch.zeros_like(kl)
        if self.spread:
            excess = self._excess(x, perturbed, of_spread, posterior, prior)
            loss = loss + self.spread * excess.sum()
        return loss, reconstruction.mean(), kl.mean(), excess.mean()

    def excess(self, pairs: Batch, posterior: Gaussian, prior: Gaussian) -> Tensor:
        """How much farther a draw lies from its image than the farthest perturbation observed in the batch: ``[B]``.

        Squared error, summed over pixels; 0 for a draw that lies nearer. Draws have uniform directions and lengths
        that are uniform up to the largest latent norm of the batch, then move one step of a tenth of that to where the
        error grows most: the set's radius will be such a norm, and attacks will look for the worst within it.
        """
        return self._excess(pairs.x, pairs.perturbed, self._keys(pairs, Purpose.LEARNING_SPREAD), posterior, prior)

    def _excess(self, x: Tensor, perturbed: Tensor, keys: Tensor, posterior: Gaussian, prior: Gaussian) -> Tensor:
        with torch.no_grad():
            observed = (perturbed - x).square().sum(IMAGE_DIMS).max()
            sizes = ((posterior.mean - prior.mean) / prior.std).flatten(1).norm(dim=1)
            # In a ball of radius 1 and enlarged afterwards: a radius of the batch's own would be waited for on a GPU.
            radius, ball = sizes.max().clamp_min(1e-3), LatentBall(self.network.latent_shape, "l2", 1.0)
            u = ball.uniform_length(keys)
        u = u.requires_grad_()
        gradient = torch.autograd.grad(self._distance(x, radius * u, prior).sum(), u)[0]
        with torch.no_grad():
            u = ball.ascent_step(u, gradient, 0.1)
        return (self._distance(x, radius * u, prior) - observed).clamp_min(0)

    def _distance(self, x: Tensor, u: Tensor, prior: Gaussian) -> Tensor:
        decoded = self.network.generate(x, prior.mean + prior.std * u)
        return pixel_loss("gaussian", decoded, x).sum(IMAGE_DIMS)

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation."""
        self.norms.reset()
        self.units.reset()
        self._sampled = None

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Losses, norms and the encoder's error; the radius is only known at the end."""
        reconstruction, kl, posterior, prior = self.losses(batch, Purpose.LEARNING_VALIDATION)
        s = CVAESet(self.network, self.likelihood, radius=1.0).at(batch.x)
        u = (posterior.mean - prior.mean) / prior.std
        self.norms.update(s.ball.size(u), batch.kind)
        self.units.update(posterior.mean, prior.mean)
        # The radius will be the largest of these norms, so no projection is due here.
        unbounded = s.ball.with_radius(torch.finfo(u.dtype).max)
        values = {
            "val/loss": (reconstruction + self.final_beta * kl).mean(),
            "val/reconstruction": reconstruction.mean(),
            "val/kl": kl.mean(),
            "val/encoder_ae": encoder_error(s, batch.perturbed, u, unbounded, squared_error).mean(),
        }
        self.log_means(values, len(batch.index))
        if self._sampled is None:
            self._sampled = batch

    @property
    def final_beta(self) -> float:
        """β at the end of the run."""
        return self.beta(end(self.trainer.max_epochs))

    def on_validation_epoch_end(self) -> None:
        """Select the radius, and see what a draw within it looks like (on the first batch)."""
        self.latent_norms = self.norms.compute()
        radius = self.latent_norms["max"]
        if not (math.isfinite(radius) and radius > 0):
            self.radius = None
            return
        self.radius = radius
        values = {"val/radius": radius, "val/active_units": float(self.units.compute())}
        values |= shown_norms(self.latent_norms, len(self.norms.kind_names))
        assert self._sampled is not None
        pairs = self._sampled
        s = CVAESet(self.network, self.likelihood, radius).at(pairs.x)
        ball = LatentBall(self.network.latent_shape, "l2", radius)
        keys = random.example_keys(self.seed, pairs.index, Purpose.LEARNING_SAMPLES)
        expected = expected_error(s, pairs.perturbed, ball, squared_error, draws=5, keys=keys)
        self.log_means({"val/expected_ae": expected.mean()}, len(pairs.index))
        self.log_dict(values)

    def perturbation_set(self) -> CVAESet:
        """The set with the present weights.

        Raises:
            FloatingPointError: if no radius could be selected.
        """
        if self.radius is None:
            raise FloatingPointError("no radius could be selected: the norms of the validation pairs are not finite")
        perturbations = CVAESet(self.network, self.likelihood, self.radius)
        perturbations.latent_norms, perturbations.data = self.latent_norms, self.data_name
        return perturbations

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the radius: the next checkpoint may be written before the next validation."""
        stored = checkpoint.get(CHECKPOINT_KEY, {})
        self.radius, self.latent_norms = stored.get("radius"), dict(stored.get("latent_norms", {}))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the set's configuration, plain containers only."""
        checkpoint[CHECKPOINT_KEY] = describe_cvae(
            self.network, self.likelihood, self.radius, self.latent_norms, self.data_name
        )


def _take_weights(network: CVAE, path: str) -> None:
    stored = load_perturbation_set(path)
    if not isinstance(stored, CVAESet):
        raise InputError(f"learner.init_from={path} holds no set of a CVAE")
    try:
        network.load_state_dict(stored.network.state_dict())
    except RuntimeError as error:
        details = "; ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise InputError(
            f"learner.init_from={path} holds the weights of another network (a unet's fit another resolution where"
            f" learner.network.pool is the same): {details}"
        ) from None
    note_seen(network, seen_by(stored))
