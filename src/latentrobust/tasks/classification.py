"""Train a classifier on perturbed images; one class per pixel in `segmentation`."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

from latentrobust.arguments import Count, Seed, validated
from latentrobust.batch import Batch, asked_once
from latentrobust.data.module import PairData
from latentrobust.errors import InputError, RobustnessWarning, collecting, warn
from latentrobust.keys import Purpose
from latentrobust.modules import Optimizer, Scheduled, WeightedMean
from latentrobust.networks import layout
from latentrobust.networks.compiled import compiled
from latentrobust.perturbation_sets.ascent import frozen
from latentrobust.perturbation_sets.base import PerturbationSet
from latentrobust.robustness.attacks import Attack, Found
from latentrobust.robustness.criteria import Classification, Criterion, PixelAccuracy, answer, logits_of
from latentrobust.robustness.inputs import name_classes
from latentrobust.robustness.objectives import NoiseConsistency, Standard, TrainingObjective
from latentrobust.robustness.training import Curriculum, RecordedSearches, Setting, TrainingPerturbation
from latentrobust.robustness.training import Schedule as StagedPerturbation
from latentrobust.robustness.training.base import repeated
from latentrobust.schedules import Schedule
from latentrobust.tasks.quality import check_same_images
from latentrobust.tasks.store import CHECKPOINT_KEY, describe_model
from latentrobust.transforms import random
from latentrobust.transforms.augmentation import ImageAugmentation, apply_in_order

ACCURACIES = ("clean", "perturbed", "robust")


@validated
class ClassificationTask(Scheduled):
    """A model trained on what ``training_perturbation`` makes of each batch, under an objective.

    Validation logs ``val/accuracy/clean``, ``…/perturbed`` (on the data's own perturbed images) and, in the epochs with
    an attack, ``…/robust`` at the set's radius.

    Args:
        model: images in [0, 1] to logits; any module.
        training_perturbation: where the training images come from.
        objective: what is minimised on them.
        optimizer: called with the parameters; its learning rate is the peak.
        scheduler: the factor of the peak learning rate at a moment, set at every step.
        perturbations: the set, for perturbations and attacks that need one.
        validation_attack: null for none.
        attack_every_n_epochs: epochs between two validation attacks.
        attack_examples: validation examples that are attacked, the first ones.
        augmentation: of the training images, before and after the perturbation; null for none.
        select_on: ``"clean"``, ``"perturbed"`` or ``"robust"``: the accuracy by which the best checkpoint is chosen.
        channels_last: lay the model's weights out as convolutions like them best; None for networks of this package.
        cuda_graphs: record the adversary's search on a GPU, and start its kernels together.
        torch_compile: train through ``torch.compile``, which fuses what lies between convolutions.
        seed: of perturbations, drawn by (seed, epoch, example).

    Raises:
        InputError: for settings that do not fit each other.
    """

    LOGGED = ("train/loss", "train/accuracy", "train/lr", *(f"val/accuracy/{name}" for name in ACCURACIES))
    criterion: Criterion = Classification()

    def __init__(
        self,
        model: nn.Module,
        training_perturbation: TrainingPerturbation,
        objective: TrainingObjective,
        optimizer: Optimizer,
        scheduler: Schedule,
        perturbations: PerturbationSet | None = None,
        validation_attack: Attack | None = None,
        attack_every_n_epochs: Count = 1,
        attack_examples: Count = 256,
        augmentation: ImageAugmentation | None = None,
        select_on: Literal["clean", "perturbed", "robust"] = "robust",
        channels_last: bool | None = None,
        cuda_graphs: bool = True,
        torch_compile: bool = False,
        seed: Seed = 0,
    ) -> None:
        super().__init__(optimizer, scheduler, cuda_graphs)
        self.searches = RecordedSearches(self.records)
        if select_on == "robust" and (validation_attack is None or perturbations is None):
            raise InputError(
                "task.select_on=robust needs a perturbation_set and a task.validation_attack: give both, or"
                " task.select_on=clean"
            )
        if isinstance(objective, NoiseConsistency) and training_perturbation.draws < 2:
            raise InputError(
                "objective=noise_consistency compares several draws per image, and there is one:"
                " training_perturbation=gaussian training_perturbation.draws=2"
            )
        self.augmentation = augmentation or ImageAugmentation()
        if self.augmentation.mixup is not None and type(objective) is not Standard:
            raise InputError("mixup changes images and labels together, which only objective=standard is made for")
        self.model = layout.channels_last(model, channels_last)
        self.torch_compile = torch_compile
        self._steps_of = (self.model,)  # the model as steps call it; in a tuple, for it has the model's own weights
        self.training_perturbation, self.objective = training_perturbation, objective
        # In a tuple, so that checkpoints and DDP leave the frozen set alone.
        self._set = (perturbations,)
        self.validation_attack = validation_attack
        self.attack_every_n_epochs, self.attack_examples = attack_every_n_epochs, attack_examples
        self.select_on, self.seed = select_on, seed
        self.accuracies = nn.ModuleDict({name: MeanMetric() for name in ACCURACIES})
        # A figure that is not a number must show.
        self.fit_metrics = nn.ModuleDict({name: WeightedMean() for name in ("accuracy", "loss")})
        self.fitted: dict[str, float] = {}  # these two, of the last epoch whose steps have ended

    @property
    def perturbations(self) -> PerturbationSet | None:
        """The set, frozen, on this module's device."""
        return self._set[0]

    def setup(self, stage: str) -> None:
        """Check that data, set and model fit."""
        data: PairData = self.trainer.datamodule  # type: ignore[attr-defined]
        self._outputs = self.check_data(data)
        self.data_name, self.image_shape, self.classes = data.name, tuple(data.image_shape), data.classes
        self.class_names = tuple(data.class_names)
        name_classes(self.model, self.class_names)
        self._has_pairs, self._first_kinds = data.has_pairs, data.first_kinds("validation")
        if self.perturbations is not None:
            check_same_images(data, self.perturbations)
            self.perturbations.eval().requires_grad_(False).to(self.device)

    def check_data(self, data: PairData) -> int:
        """Refuse data that the model does not fit, or that lacks what the task needs; returns the model's classes.

        Raises:
            InputError: naming both.
        """
        check_centred(data)
        self._check_labels(data)
        if self.select_on == "perturbed" and not data.has_pairs:
            raise InputError(f"data {data.name} has no perturbed images for task.select_on=perturbed: use clean")
        return check_fit(self.model, tuple(data.image_shape), data.classes, self.criterion)

    def _check_labels(self, data: PairData) -> None:
        """Refuse data with another kind of labels."""
        if data.per_pixel:
            raise InputError(f"data {data.name} has a class per pixel: choose task=segmentation and model=unet")

    def on_fit_start(self) -> None:
        """Take the set along to the training device."""
        if self.perturbations is not None:
            self.perturbations.to(self.device)
        self.check_epochs(self.trainer)
        self._steps_of = (compiled(self.model, self.device) if self.torch_compile else self.model,)

    def check_epochs(self, trainer: pl.Trainer) -> None:
        """Refuse a training in which something that was asked for never happens.

        Raises:
            InputError: naming what, and the values that it depends on.
        """
        epochs, every = trainer.max_epochs or 0, trainer.check_val_every_n_epoch or 1
        if epochs < 1 or trainer.max_steps > 0 or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if self.select_on == "robust" and epochs < math.lcm(every, self.attack_every_n_epochs):
            raise InputError(
                f"no epoch of trainer.max_epochs={epochs} has a validation attack, which select_on=robust needs: lower"
                f" task.attack_every_n_epochs={self.attack_every_n_epochs} or"
                f" trainer.check_val_every_n_epoch={every}"
            )
        if (late := self._begins_after(epochs)) is not None:
            raise InputError(f"{late}, after trainer.max_epochs={epochs}: shorten training_perturbation.epochs")

    def _begins_after(self, epochs: int) -> str | None:
        """What is trained for in the end, and when that begins, if so many epochs end before it."""
        perturbation = self.training_perturbation
        if not isinstance(perturbation, StagedPerturbation | Curriculum) or perturbation.last_begins < epochs:
            return None
        is_schedule = isinstance(perturbation, StagedPerturbation)
        what = "the last stage of the schedule" if is_schedule else "the curriculum"
        return f"{what} begins in epoch {perturbation.last_begins}"

    def on_train_start(self) -> None:
        """Let the best epoch be one of those that train for what the last one trains for."""
        epochs = _epochs(self.trainer)
        if self.trainer.max_steps > 0 and epochs and (late := self._begins_after(epochs)) is not None:
            warn(
                f"trainer.max_steps={self.trainer.max_steps} is {epochs} of the epochs, and {late} (from 0 on):"
                " that is not trained for"
            )
        for callback in self.trainer.checkpoint_callbacks:
            if hasattr(callback, "begin_at") and epochs > 0:
                callback.begin_at(self.training_perturbation.settled(epochs))

    @property
    def trained(self) -> nn.Module:
        """The network."""
        return self.model

    def on_validation_start(self) -> None:
        """The same for who keeps the best epoch, which is saved before it ends."""
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self.on_train_epoch_end()

    def on_train_epoch_end(self) -> None:
        """Keep accuracy and loss on the images that were trained on."""
        self.fitted = {name: float(metric.compute()) for name, metric in self.fit_metrics.items()}  # type: ignore[operator]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Perturb, then one step of the objective."""
        keys = random.example_keys(self.seed, batch.index, Purpose.TRAINING, batch.epoch)
        batch = self._augmented(batch, keys)
        (model,) = self._steps_of
        setting = Setting(model, self.perturbations, batch, keys, self.objective.attack_loss, searches=self.searches)
        images, targets = self.training_perturbation(setting)
        keys = _keys_of_draws(keys, len(images) // len(keys))
        after = random.fold_in(keys, Purpose.AFTER)
        images = apply_in_order(self.augmentation.after, images, after)
        # Objectives that compare the two sides do so under the same augmentation, that of the first draw.
        x = apply_in_order(self.augmentation.after, batch.x, after[: len(batch)])
        labels = repeated(batch.labels, len(images) // len(batch))
        if self.augmentation.mixup is not None:
            targets = F.one_hot(targets, self._outputs).to(images.dtype)
            images, targets = self.augmentation.mixup(images, targets, random.fold_in(keys, Purpose.MIXUP))
            labels = targets.argmax(1)  # of which there is more
        step = self.objective(model, x, images, targets, keys)
        weights = _weights(batch.labels)
        loss = _mean(step.loss, weights)
        right = self.criterion.accuracy(step.logits.detach(), labels)
        counted = right.isfinite()  # of maps, some images may have no pixel that counts
        values = {"loss": (loss.detach(), weights.sum()), "accuracy": (right.where(counted, 0), counted)}
        for name, (value, weight) in values.items():
            metric: Any = self.fit_metrics[name]
            metric.update(value, weight)
            self.log(f"train/{name}", metric, on_step=False, on_epoch=True, batch_size=len(batch.index))
        self.log_rate()
        self.of_step = {"loss": loss.detach()}
        return loss * self.share_of_step(batch_idx)

    def _augmented(self, batch: Batch, keys: Tensor) -> Batch:
        """What is trained on: both halves of the pairs augmented alike, where the data has pairs."""
        before, own = self.augmentation.before, random.fold_in(keys, Purpose.BEFORE)
        if not self._has_pairs:
            batch = replace(batch, x_tilde=None, offset=None)
        if not before:
            return batch
        x_tilde = apply_in_order(before, batch.perturbed, own) if self._has_pairs else None
        # The true offset is of the images as they were.
        return replace(batch, x=apply_in_order(before, batch.x, own), x_tilde=x_tilde, offset=None)

    def on_validation_epoch_start(self) -> None:
        """No image has been asked yet."""
        self._asked = torch.zeros(len(self._first_kinds), dtype=torch.bool)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Clean and perturbed accuracy of the batch; robust accuracy of its part among the first examples."""
        if self._has_pairs:
            self._count_perturbed(logits_of(self.model, batch.perturbed), batch.labels)
        once = asked_once(batch, self._first_kinds, self._asked)  # each image, whatever kinds it has
        alone = batch.at(once)
        right = torch.zeros(0, device=self.device)
        if len(alone):
            right = self.criterion.accuracy(logits_of(self.model, alone.x), alone.labels)
        self._count("clean", right)
        chosen = once & (batch.index < self.attack_examples)
        if self.attacks_now:
            self._attack(batch.at(chosen))

    def _count_perturbed(self, logits: Tensor, y: Tensor) -> None:
        self._count("perturbed", self.criterion.accuracy(logits, y))

    def _attack(self, part: Batch) -> None:
        """Every process logs, also one without any of the examples: what is logged is gathered from all."""
        right = torch.zeros(0, device=self.device)
        if len(part):
            assert self.validation_attack is not None
            right = self.validation_attack.judge(part.labels).remaining(self.worst_found(part).score[0])
        self._count("robust", right)

    def worst_found(self, part: Batch) -> Found:
        """What the validation attack finds for a batch, without the warnings that an untrained model gives cause to."""
        assert self.validation_attack is not None
        assert self.perturbations is not None
        with warnings.catch_warnings(), collecting(inherit=False):
            warnings.simplefilter("ignore", RobustnessWarning)
            keys = random.example_keys(self.seed, part.index, Purpose.VALIDATION_ATTACK)
            return self.validation_attack(
                self.model, self.perturbations, part.x, part.labels,
                keys=keys, x_tilde=part.perturbed, offset=part.offset,
            )  # fmt: skip

    @property
    def attacks_now(self) -> bool:
        """Whether the validation attack runs in this epoch."""
        if self.validation_attack is None or self.perturbations is None:
            return False
        return (self.current_epoch + 1) % self.attack_every_n_epochs == 0

    def _count(self, name: str, right: Tensor) -> None:
        metric = self.accuracies[name]
        right = right[~right.isnan()]
        if len(right):
            metric.update(right)  # type: ignore[operator]
        self.log(f"val/accuracy/{name}", metric, on_epoch=True, batch_size=max(len(right), 1))  # type: ignore[arg-type]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the model's configuration and the last epoch's values; plain containers only."""
        checkpoint[CHECKPOINT_KEY] = describe_model(
            self.model, self.image_shape, self.classes, self.data_name, self.class_names
        )
        checkpoint["fitted"] = dict(self.fitted)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the values: the training may have ended already."""
        self.fitted = dict(checkpoint.get("fitted", {}))


def _weights(labels: Tensor) -> Tensor:
    """Of the images of a batch ``[B]``: 0 for a map in which no pixel counts."""
    return labels.new_ones(len(labels)) if labels.dim() == 1 else (labels >= 0).flatten(1).any(1).long()


def _mean(losses: Tensor, weights: Tensor) -> Tensor:
    """Of an objective's losses ``[m · B]``, over the images that count."""
    counted = repeated(weights, len(losses) // len(weights))
    return torch.where(counted > 0, losses, 0).sum() / counted.sum().clamp_min(1)


def _epochs(trainer: pl.Trainer) -> int:
    """How many there will be, the last one perhaps in part; 0 where that is not known yet, or never."""
    limits = [trainer.max_epochs] if trainer.max_epochs is not None and trainer.max_epochs > 0 else []
    if trainer.max_steps > 0:
        batches = trainer.num_training_batches
        if not 0 < batches < math.inf:  # before it begins
            return 0
        limits.append(math.ceil(trainer.max_steps / math.ceil(batches / trainer.accumulate_grad_batches)))
    return min(limits, default=0)


def _keys_of_draws(keys: Tensor, draws: int) -> Tensor:
    """Keys ``[draws · B]`` of several images per example; the first ones are the examples' own."""
    later = [random.fold_in(random.fold_in(keys, Purpose.LATER_DRAWS), number) for number in range(1, draws)]
    return torch.cat([keys, *later])


def check_centred(data: PairData) -> None:
    """Refuse pairs whose first half is not the original: nothing about a model would be about clean images.

    Raises:
        InputError: naming the remedy.
    """
    if not data.centred:
        raise InputError(
            "models are trained and measured on pairs of an original and its perturbed version: data.pairing=centred,"
            " or data.original=… for own pairs in groups"
        )


def check_fit(
    model: nn.Module,
    image_shape: tuple[int, ...],
    classes: int,
    criterion: Criterion = Classification(),  # noqa: B008 - frozen
) -> int:
    """Refuse a model that does not take the data's images or tell its classes apart; return how many it tells apart.

    Raises:
        InputError: naming both sides.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with frozen(model), torch.no_grad():
        logits = answer(model, torch.zeros(2, *image_shape, device=device))
    positions = image_shape[1:] if isinstance(criterion, PixelAccuracy) else ()
    criterion.check(logits, torch.zeros(2, *positions, dtype=torch.int64, device=device))
    if logits.shape[1] < classes:
        raise InputError(f"the model has {logits.shape[1]} classes, the data {classes}: labels are 0 to {classes - 1}")
    return int(logits.shape[1])
