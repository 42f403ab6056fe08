"""Names of the configuration that have changed, for the line that says what to write now."""

from __future__ import annotations

import re

_TWINS = {"synthetic_illumination": "multi_illumination", "cifar10c/small": "cifar10c"}
_SETS = {
    "multi_illumination/mip5": "multi_illumination/set",
    "multi_illumination/cvae": "multi_illumination/set",
    "mnist/warp/rts": "mnist/rts",
    "mnist/warp/model": "mnist/model",
    "mnist/rts_1": "mnist/rts/paper data.draws_per_example=1",
    "mnist/rts_5": "mnist/rts/paper data.draws_per_example=5",
    "cifar10/low_data/flow": "cifar10/flow regime=low_data",
    "cifar10/no_augmentation/flow": "cifar10/flow regime=low_data augmentation@learner.augmentation=none",
    "cifar10/full/vae_gan": "cifar10/vae_gan",
    "cifar10/low_data/vae_gan": "cifar10/vae_gan regime=low_data data.batch_size=500",
}
_MODELS = {"mnist/warp": "mnist/model", "fashion_mnist": "fashion_mnist/model", "cifar100": "cifar100/model",
           "svhn": "svhn/model", "cifar10c": "cifar10c/model", "multi_illumination": "multi_illumination/model",
           "cifar10/full": "cifar10/model", "cifar10/low_data": "cifar10/model regime=low_data",
           "cifar10/no_augmentation": "cifar10/model regime=low_data image_augmentation@task.augmentation=none",
           "cifar10/table_8": "cifar10/model", "mnist": "mnist/model/paper"}  # fmt: skip
_STEPS = "training_perturbation.steps=2 training_perturbation.relative_step=0.75"
_WEAKER = "training_perturbation.stages.second.radius=1 training_perturbation.stages.second.relative_step=0.75"
_METHODS = {
    "rts_augmentation": "data_augmentation",
    "rts_adversarial": "adversarial",
    "rts_smoothing": "smoothing",
    "fixed_light": "standard",
    "smoothing_p25": "smoothing evaluation.certify.target=p25",
    "smoothing_p50": "smoothing",
    "smoothing_p75": "smoothing evaluation.certify.target=p75",
    "adversarial_la_of_cifar10": "adversarial_la training_perturbation.radius=0.3",
    "randomized_la_of_cifar10": "randomized_la",
    "randomized_l2_10": "randomized_la training_perturbation.norm=l2 training_perturbation.radius=10",
    "randomized_l2_20": "randomized_la training_perturbation.norm=l2 training_perturbation.radius=20",
    "randomized_linf_02": "randomized_la training_perturbation.radius=0.2",
    "randomized_linf_03": "randomized_la training_perturbation.radius=0.3",
    "adversarial_2": f"adversarial_la training_perturbation.radius=2 {_STEPS}",
    "adversarial_2_then_075": "table_8/adversarial_then_weaker",
    "adversarial_2_then_1": f"table_8/adversarial_then_weaker {_WEAKER}",
    "adversarial_2_then_randomized": "table_8/adversarial_then_randomized",
    "randomized_then_weaker": "table_8/randomized_then_weaker",
    "three_stages": "table_8/three_stages",
    "pgd_l2": "table_8/pgd_l2",
    "pgd_linf": "table_8/pgd_linf",
}
_KEPT = (
    "standard", "data_augmentation", "cvae_augmentation", "adversarial", "smoothing", "augmix", "pixel_l2",
    "pixel_linf", "adversarial_la", "randomized_la", "on_manifold", "no_augmentation", "cutout", "mixup",
)  # fmt: skip
_WARP = {"augmentation": "data_augmentation", "adversarial": "curriculum", "smoothing": "smooth_adversarial"}
_LENET = ("mnist/adversarial_la", "mnist/randomized_la")
_KEYS = {"paths.flow": "from"}


def experiment_now(old: str) -> str | None:
    """The overrides that stand for what was an experiment of its own before there were methods; else None."""
    small = next((twin for twin in _TWINS if old.startswith(f"{twin}/")), None)
    name = f"{_TWINS[small]}{old.removeprefix(small)}" if small else old
    size = " size=small" if small else ""
    if name in _SETS:
        return f"experiment={_SETS[name]}{size}"
    if (pairing := re.fullmatch(r"cifar10c/cvae_(centred|original_perturbed|perturbed_only)", name)) is not None:
        return f"experiment=cifar10c/set/paper data.pairing={pairing[1]}{size}"
    if name in _LENET:
        return f"experiment=mnist/lenet method={name.rpartition('/')[2]}"
    family, _, row = name.rpartition("/")
    method = (_WARP if family == "mnist/warp" else _METHODS).get(row, row if row in _KEPT else None)
    if family not in _MODELS or method is None:
        return None
    return f"experiment={_MODELS[family]} method={method}{size}"


def key_now(old: str) -> str | None:
    """What a key is called that had another name; None for any other."""
    return _KEYS.get(old)
