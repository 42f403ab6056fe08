"""Learn a perturbation set with a normalizing flow, by exact likelihood."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MaxMetric

from latentrobust.arguments import Count, Positive, RadiusRule, Seed, validated
from latentrobust.batch import Batch
from latentrobust.data.module import PairData
from latentrobust.errors import InputError
from latentrobust.graphs import GraphedLoss
from latentrobust.keys import Purpose
from latentrobust.modules import Optimizer, Scheduled, WeightedMean
from latentrobust.networks import layout
from latentrobust.networks.flows.base import FlowNetwork
from latentrobust.networks.flows.convolution import InvertibleConvolution
from latentrobust.perturbation_sets.ball import Norm
from latentrobust.perturbation_sets.flow import FlowSet
from latentrobust.perturbation_sets.quality import LatentNorms, shown_norms
from latentrobust.perturbation_sets.store import CHECKPOINT_KEY, describe_latent
from latentrobust.schedules import Schedule
from latentrobust.transforms import random
from latentrobust.transforms.augmentation import Augmentation, apply_in_order


@validated
class FlowLearner(Scheduled):
    """Minimises the negative log-likelihood of clean images (Yüksel et al., section 2).

    What is differentiated is in nats per image, as in the published code, so that weight decay, the optimiser's ε and
    gradient clipping mean the same; what is logged is in bits per dimension.

    Each validation logs ``val/bits_per_dim`` (also as ``val/loss``) under the same noise every time, and
    ``val/round_trip_error``, the largest ``|F⁻¹(F(x)) − x|`` of a pixel. Where the data has pairs, it also gathers the
    norms of the offsets between their halves.

    Args:
        network: the flow.
        optimizer: called with the parameters; its learning rate is the peak.
        scheduler: the factor of the peak learning rate at a moment, set at every step.
        norm: of the set: ``"l2"`` or ``"linf"``.
        radius: of the set: a number; or, where the data has pairs, as for conditional VAEs (``max``, ``p95``,
            ``coverage=0.95``); null is ``max``.
        augmentation: of the training images, by name, in order; or None.
        recompute: compute activations again for the gradient instead of keeping them: a fraction of the memory.
        initialize_on: training examples whose activations initialise the network.
        channels_last: lay weights out as convolutions like them best; None for networks of this package.
        cuda_graphs: record the loss and its gradients on a GPU, and start their kernels together.
        seed: of noise and augmentation, drawn by (seed, epoch, example).

    Raises:
        InputError: for settings that do not fit.
    """

    def __init__(
        self,
        network: FlowNetwork,
        optimizer: Optimizer,
        scheduler: Schedule,
        norm: Norm = "l2",
        radius: Positive | RadiusRule | None = 1.0,
        augmentation: dict[str, Augmentation] | None = None,
        recompute: bool = False,
        initialize_on: Count = 256,
        channels_last: bool | None = None,
        cuda_graphs: bool = True,
        seed: Seed = 0,
    ) -> None:
        super().__init__(optimizer, scheduler, cuda_graphs)
        self.network = layout.channels_last(network, channels_last)
        network.recompute(recompute)
        self.norm = norm
        self.radius_rule: float | str = "max" if radius is None else radius
        self.fixed_radius = radius if isinstance(radius, int | float) else None
        self.augmentation = dict(augmentation or {})
        self.initialize_on, self.seed = initialize_on, seed
        self.radius = self.fixed_radius
        self.latent_norms: dict[str, float] = {}
        self.norms = LatentNorms()
        # A figure that is not a number must show.
        self.train_bits, self.val_bits = WeightedMean(), WeightedMean()
        self.round_trip = MaxMetric(nan_strategy="disable")
        self.data_name = ""
        self.history: dict[str, list[float]] = {"epoch": [], "train": [], "val": []}
        self.loss = GraphedLoss(self._loss, self.network, self.records)

    LOGGED = (
        "train/bits_per_dim", "train/lr", "val/loss", "val/bits_per_dim", "val/round_trip_error", "val/latent_norm/*",
    )  # fmt: skip

    def setup(self, stage: str) -> None:
        """Check that data and network fit."""
        data: PairData = self.trainer.datamodule  # type: ignore[attr-defined]
        self.check_data(data)
        self.data_name, self.norms.kind_names = data.name, data.kinds
        self._has_pairs = data.has_pairs

    def check_data(self, data: PairData) -> None:
        """Refuse data that the flow does not fit.

        Raises:
            InputError: naming both.
        """
        if tuple(data.image_shape) != self.network.image_shape:
            raise InputError(
                f"data {data.name} has images {list(data.image_shape)}, the flow is for"
                f" {list(self.network.image_shape)}: set learner.network.image_shape, or data.canvas or data.size"
            )
        if self.network.classes and not data.has_labels:
            raise InputError(
                f"data {data.name} has no labels, and the flow is conditioned on {self.network.classes} classes: give"
                " labels (data.label=parent, or a manifest), or choose learner/network=glow"
            )
        if self.network.classes and data.classes > self.network.classes:
            raise InputError(
                f"data {data.name} has {data.classes} classes, the flow is conditioned on {self.network.classes}: set"
                f" learner.network.classes={data.classes}"
            )
        if self.fixed_radius is None and not data.has_pairs:
            raise InputError(f"data {data.name} has no pairs to select a radius from: give learner.radius")

    def on_fit_start(self) -> None:
        """Initialise from the first training examples, which are the same in every process."""
        data: PairData = self.trainer.datamodule  # type: ignore[attr-defined]
        pairs = data.first_pairs("train", self.initialize_on, self.device)
        keys = random.example_keys(self.seed, pairs.index, Purpose.LEARNING_START)
        self.network.initialize(self.network.dequantize(pairs.x, keys), self._labels(pairs))

    def _labels(self, batch: Batch) -> Tensor:
        """Those that the flow is conditioned on, or any."""
        return batch.labels if self.network.classes else torch.zeros_like(batch.index)

    @property
    def trained(self) -> nn.Module:
        """The network."""
        return self.network

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The negative log-likelihood of a batch, in nats per image: what weight decay and clipping are relative to."""
        keys = random.example_keys(self.seed, batch.index, Purpose.LEARNING, batch.epoch)
        images = apply_in_order(self.augmentation, batch.x, random.fold_in(keys, Purpose.AUGMENT))
        (bits,) = self.loss(images, self._labels(batch), keys)
        size = len(batch.index)
        self.train_bits.update(bits.detach(), size)
        self.log("train/bits_per_dim", self.train_bits, on_step=False, on_epoch=True, batch_size=size)
        self.log_rate()
        self.of_step = {"bits_per_dim": bits.detach()}
        return bits * (math.prod(self.network.image_shape) * math.log(2) * self.share_of_step(batch_idx))

    def _loss(self, images: Tensor, labels: Tensor, keys: Tensor) -> tuple[Tensor]:
        return (self.bits_per_dim(images, labels, keys).mean(),)

    def bits_per_dim(self, images: Tensor, labels: Tensor, keys: Tensor) -> Tensor:
        """``[B]``, with noise drawn by ``keys``."""
        noisy = self.network.dequantize(images, random.fold_in(keys, Purpose.NOISE))
        return self.network.bits_per_dim(noisy, labels)

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation; stop with a clear message where the flow has no inverse any more."""
        self.norms.reset()
        for layer in self.network.modules():
            if isinstance(layer, InvertibleConvolution):
                layer.inverse_matrix()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Likelihood, round trip, and norms of observed perturbations."""
        keys = random.example_keys(self.seed, batch.index, Purpose.LEARNING_VALIDATION)
        bits = self.bits_per_dim(batch.x, self._labels(batch), keys)
        size = len(batch.index)
        self.val_bits.update(bits)
        self.log("val/bits_per_dim", self.val_bits, on_epoch=True, batch_size=size)
        self.log_means({"val/loss": bits.mean()}, size)
        s = FlowSet(self.network, self.norm, radius=1.0).at(batch.x, batch.y)
        back = s.decode_unclamped(torch.zeros_like(s.z))  # type: ignore[attr-defined]
        self.round_trip.update((back - batch.x).abs().amax())
        self.log("val/round_trip_error", self.round_trip, on_epoch=True, batch_size=size)
        if self._has_pairs:
            self.norms.update(s.ball.size(s.encode(batch.perturbed, batch.offset)), batch.kind)

    def on_validation_epoch_end(self) -> None:
        """Where the data has pairs: their norms, and the radius if it is to be selected."""
        if not self.trainer.sanity_checking:
            epoch, bits = self.trainer.current_epoch + 1, float(self.val_bits.compute())
            if self.history["epoch"][-1:] == [epoch]:  # of several validations in an epoch, the last counts
                self.history["val"][-1] = bits
            else:
                self.history["epoch"].append(epoch)
                self.history["val"].append(bits)
        if not self._has_pairs:
            return
        self.latent_norms = self.norms.compute()
        largest = self.latent_norms["max"]
        if self.fixed_radius is None:
            self.radius = largest if math.isfinite(largest) and largest > 0 else None
        self.log_dict(shown_norms(self.latent_norms, len(self.norms.kind_names)))

    def on_train_epoch_end(self) -> None:
        """Complete the history of an epoch that had a validation."""
        if len(self.history["train"]) < len(self.history["val"]):
            self.history["train"].append(float(self.train_bits.compute()))

    def perturbation_set(self) -> FlowSet:
        """The set with the present weights.

        Raises:
            FloatingPointError: if no radius could be selected.
        """
        if self.radius is None:
            raise FloatingPointError("no radius could be selected: the norms of the validation pairs are not finite")
        perturbations = FlowSet(self.network, self.norm, self.radius)
        perturbations.latent_norms, perturbations.data = self.latent_norms, self.data_name
        return perturbations

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the radius: the next checkpoint may be written before the next validation."""
        stored = checkpoint.get(CHECKPOINT_KEY, {})
        self.latent_norms = dict(stored.get("latent_norms", {}))
        self.history = checkpoint.get("history", self.history)
        if self.fixed_radius is None:
            self.radius = stored.get("radius")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the set's configuration and the training's history, plain containers only."""
        checkpoint["history"] = {name: list(values) for name, values in self.history.items()}
        checkpoint[CHECKPOINT_KEY] = describe_latent(
            "flow", self.network, self.norm, self.radius, self.latent_norms, self.data_name
        )
