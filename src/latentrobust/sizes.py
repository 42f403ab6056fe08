"""Networks of a run's configuration get their sizes from the data: what ``auto`` chooses, and what own pairs decide."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from latentrobust.data.module import PairModule
from latentrobust.data.pairs.given import GivenPairs
from latentrobust.errors import InputError
from latentrobust.networks.automatic import ANY_SIZE, Choice, choose_classifier, choose_cvae, choose_flow
from latentrobust.run_folder import say

LOG = logging.getLogger(__name__)
AUTO = "auto"
NETWORKS = "latentrobust.networks."


def take_sizes(cfg: DictConfig, data: PairModule) -> None:
    """Replace networks called ``auto``; give those of own pairs, and those for any size, the data's sizes, in place.

    Networks of published experiments keep the sizes that their configuration says, which are checked later.

    Args:
        cfg: the run's configuration.
        data: of the run; read here where a network depends on it.

    Raises:
        InputError: for data that no network fits, or that lacks the labels which a classifier needs.
    """
    for key, node in _networks(cfg):
        if node.get("name") == AUTO:
            chosen = _chosen(key, str(node["_target_"]), data)
            # What somebody has said beside the name holds.
            said = {str(name): value for name, value in node.items() if name not in ("_target_", "name")}
            _replace(node, {**chosen.arguments, **said}, chosen.name)
            say(f"{key}: {chosen.name}, because {chosen.reason}")
        elif isinstance(data, GivenPairs) or node.get("name") in ANY_SIZE:
            sizes = _of_data(cfg, key, node, data)
            # What config.yaml says is of the data that the option was written for.
            taken = [f"{name}={value}" for name, value in sizes.items() if value is not None and node[name] != value]
            if taken:
                LOG.info("%s: %s, as the data are", key, ", ".join(taken))
            _replace(node, sizes)


def _networks(cfg: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    """Networks of this package in a configuration, with their keys."""
    keys = ["learner.network", "model", *(f"models.{name!s}.model" for name in cfg.get("models") or ())]
    for key in keys:
        node: Any = cfg
        for part in key.split("."):
            node = node.get(part) if isinstance(node, DictConfig) else None
        if isinstance(node, DictConfig) and str(node.get("_target_", "")).startswith(NETWORKS):
            yield key, node


def _chosen(key: str, target: str, data: PairModule) -> Choice:
    data.setup()
    if target.startswith(f"{NETWORKS}cvae."):
        return choose_cvae(data.image_shape, data.moves_only)
    if target.startswith(f"{NETWORKS}flows."):
        return choose_flow(data.image_shape)
    if target.startswith(f"{NETWORKS}classifiers."):
        if data.per_pixel:
            raise InputError(f"{key}=auto chooses classifiers, and data {data.name} has a class per pixel: model=unet")
        return choose_classifier(data.image_shape, data.classes, data.count("train"))
    raise InputError(f"{key}: no network of {target.rpartition('.')[0]} can be chosen automatically: name one")


def _of_data(cfg: DictConfig, key: str, node: DictConfig, data: PairModule) -> dict[str, Any]:
    """Sizes that nobody has named on the command line, by argument."""
    data.setup()
    named = {override.lstrip("+~").partition("=")[0] for override in cfg.get("overrides") or ()}
    channels = data.image_shape[0]
    sizes: dict[str, Any] = {
        "image_shape": list(data.image_shape), "channels": channels, "image_channels": channels, "pool": None,
    }  # fmt: skip
    if "classes" in node:
        if not data.has_labels and str(node["_target_"]).startswith(f"{NETWORKS}vae_gan."):
            raise InputError(f"data {data.name} has no labels, and a VAE-GAN has networks of each class: give labels")
        sizes["classes"] = data.classes if data.has_labels or not key.startswith("learner") else 0
    if OmegaConf.is_list(node.get("channels")):  # of feature maps
        sizes.pop("channels")
    if len(node.get("mean") or ()) not in (0, channels):  # constants of other data
        sizes |= {"mean": None, "std": None}
    return {name: value for name, value in sizes.items() if name in node and f"{key}.{name}" not in named}


def _replace(node: DictConfig, arguments: dict[str, Any], name: str | None = None) -> None:
    with open_dict(node):
        if name is not None:
            node["name"] = name
        for argument, value in arguments.items():
            node[argument] = OmegaConf.create(value) if isinstance(value, list | dict) else value
