"""Learn class-specific VAE-GANs, for on-manifold perturbation sets."""

from __future__ import annotations

from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer, do_nothing_closure
from torch import Tensor
from torch.nn import functional as F

from latentrobust.arguments import NonNegative, Positive, Seed, validated
from latentrobust.batch import Batch
from latentrobust.data.module import PairData
from latentrobust.errors import InputError
from latentrobust.keys import Purpose
from latentrobust.modules import Optimizer, made
from latentrobust.networks.vae_gan import VAEGAN, adversarial_losses, vae_gan_losses
from latentrobust.perturbation_sets.ball import Norm
from latentrobust.perturbation_sets.store import CHECKPOINT_KEY, describe_latent
from latentrobust.perturbation_sets.vae_gan import VAEGANSet
from latentrobust.schedules import LearningRate, Schedule, now
from latentrobust.transforms import random


@validated
class VAEGANLearner(pl.LightningModule):
    """Encoders and decoders minimise ``KL + β·‖x − x̂‖₁ + γ·(how unreal x̂ looks) + η·‖log σ²‖₁``.

    Discriminators learn to tell x̂ from x at the same time. Losses are summed over pixels and latents and averaged over
    the batch (Stutz et al. 2019, supplementary). Validation logs ``val/loss``: KL and β times the absolute error.

    Args:
        network: all classes' networks.
        optimizer: called twice, with the parameters of encoders and decoders, and of discriminators.
        scheduler: the factor of the peak learning rate at a moment, set at every step.
        beta: weight of the reconstruction.
        gamma: weight of the discriminators' verdict.
        eta: weight of the encoders' log-variances.
        norm: of the set: ``"l2"`` or ``"linf"``.
        radius: of the set.
        seed: of the posterior samples, drawn by (seed, epoch, example).

    Raises:
        InputError: for settings that do not fit.
    """

    def __init__(
        self,
        network: VAEGAN,
        optimizer: Optimizer,
        scheduler: Schedule,
        beta: NonNegative = 2.75,
        gamma: NonNegative = 1.0,
        eta: NonNegative = 0.0,
        norm: Norm = "linf",
        radius: Positive = 0.3,
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network = network
        self.make_optimizer = optimizer
        self.learning_rates = (LearningRate(scheduler), LearningRate(scheduler))
        self.beta, self.gamma, self.eta = beta, gamma, eta
        self.norm, self.radius, self.seed = norm, radius, seed
        self.data_name = ""

    LOGGED = (
        *(f"train/{name}" for name in ("loss", "kl", "absolute_error", "discriminator")),
        *(f"val/{name}" for name in ("loss", "kl", "reconstruction")),
    )

    def setup(self, stage: str) -> None:
        """Check that data and network fit."""
        data: PairData = self.trainer.datamodule  # type: ignore[attr-defined]
        self.check_data(data)
        if self.trainer.world_size > 1:
            raise InputError(
                "learner=vae_gan trains on one device: not every process would have examples of each class"
            )
        self.data_name = data.name

    def check_data(self, data: PairData) -> None:
        """Refuse data that the network does not fit.

        Raises:
            InputError: naming both.
        """
        if tuple(data.image_shape) != self.network.image_shape or data.classes > self.network.classes:
            fitting = f"learner.network.image_shape={list(data.image_shape)} learner.network.classes={data.classes}"
            raise InputError(
                f"data {data.name} has images {list(data.image_shape)} of {data.classes} classes, the network is for"
                f" {list(self.network.image_shape)} and {self.network.classes}: set {fitting.replace(', ', ',')}"
            )

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """One for encoders and decoders, one for discriminators."""
        coding = [*self.network.encoders.parameters(), *self.network.decoders.parameters()]
        groups = (coding, self.network.discriminators.parameters())
        optimizers = [made(self.make_optimizer, group, self._trainer) for group in groups]
        return [rate.of(optimizer) for rate, optimizer in zip(self.learning_rates, optimizers, strict=True)]

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """A step of encoders and decoders, and one of discriminators, on the same reconstructions."""
        coding, judging = cast(list[LightningOptimizer], self.optimizers())
        at = now(self, batch_idx)
        for optimizer, rate in zip((coding, judging), self.learning_rates, strict=True):
            rate.set(optimizer, at)
        x, y = batch.x, batch.labels
        keys = random.example_keys(self.seed, batch.index, Purpose.LEARNING, batch.epoch)
        noise = random.normal(keys, self.network.latent_shape)
        error, kl, reconstruction, logits = vae_gan_losses(self.network, x, y, noise, self.beta)
        loss = (error + kl + self.gamma * F.softplus(-logits)).mean()
        if self.eta:
            loss = loss + self.eta * self.network.encode(x, y).logvar.abs().sum(1).mean()
        coding.zero_grad()
        self.manual_backward(loss)
        coding.step()
        judging.zero_grad()  # what the step above left there is not theirs
        of_judges = adversarial_losses(
            self.network.discriminate(x, y), self.network.discriminate(reconstruction.detach(), y)
        ).mean()
        self.manual_backward(self.gamma * of_judges)
        # One step for Lightning, which counts each optimiser's: trainer.max_steps and what is logged are about batches.
        judging._on_before_step = judging._on_after_step = do_nothing_closure
        judging.step()
        values: dict[str, Tensor] = {
            "train/loss": loss, "train/kl": kl.mean(), "train/absolute_error": error.mean() / max(self.beta, 1e-12),
            "train/discriminator": of_judges,
        }  # fmt: skip
        self.of_step = {"loss": loss.detach()}
        self.log_dict(
            {name: value.detach() for name, value in values.items()},
            on_step=False, on_epoch=True, batch_size=len(y), sync_dist=True,
        )  # fmt: skip

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The loss without the discriminators, and the squared error a pixel."""
        nothing = torch.zeros(len(batch.labels), *self.network.latent_shape, device=self.device)
        error, kl, reconstruction, _ = vae_gan_losses(self.network, batch.x, batch.labels, nothing, self.beta)
        values = {
            "val/loss": (error + kl).mean(), "val/kl": kl.mean(),
            "val/reconstruction": (reconstruction - batch.x).square().mean(),
        }  # fmt: skip
        self.log_dict(values, on_epoch=True, batch_size=len(batch.labels), sync_dist=True)

    def perturbation_set(self) -> VAEGANSet:
        """The set with the present weights."""
        perturbations = VAEGANSet(self.network, self.norm, self.radius)
        perturbations.data = self.data_name
        return perturbations

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the set's configuration, plain containers only."""
        checkpoint[CHECKPOINT_KEY] = describe_latent(
            "vae_gan", self.network, self.norm, self.radius, {}, self.data_name
        )
