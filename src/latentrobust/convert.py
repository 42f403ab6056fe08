"""Import published CVAE checkpoints: ``python -m latentrobust.convert FILE OUT --network NAME --radius R``."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray

from latentrobust.app import BAD_INPUT, is_bad_input
from latentrobust.errors import InputError
from latentrobust.networks.cvae import NETWORKS, build
from latentrobust.perturbation_sets.cvae import CVAESet
from latentrobust.perturbation_sets.store import read_checkpoint, save_perturbation_set

# The learning rate in their optimiser state came from NumPy. Files written under NumPy 1 name its scalar type by the
# old module path; these are data types only, no callables beyond NumPy's own reconstruction of a number.
SAFE_GLOBALS: list[Any] = [
    multiarray.scalar,
    (multiarray.scalar, "numpy.core.multiarray.scalar"),
    np.dtype,
    type(np.dtype("float64")),
]


def import_checkpoint(path: str | Path, network: str, radius: float, likelihood: str = "bernoulli") -> CVAESet:
    """A published ``.pth`` checkpoint of ``network`` as a perturbation set.

    Args:
        path: the file; read with ``weights_only=True`` and NumPy's scalar types allowed, never plainly unpickled.
        network: its name in this package.
        radius: of the set; the checkpoints do not store one.
        likelihood: as the network was trained.

    Raises:
        InputError: if the file cannot be read safely, or holds another model.
    """
    checkpoint = read_checkpoint(path, SAFE_GLOBALS)
    state = checkpoint.get("model_state_dict")
    if not isinstance(state, dict):
        raise InputError(f"{path} has no model_state_dict: it is not a published CVAE checkpoint")
    state = {name.removeprefix("module."): value for name, value in state.items()}
    module = build(network)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        details = "; ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise InputError(f"{path} is not a checkpoint of {network}: {details}") from None
    if not all(bool(value.isfinite().all()) for value in state.values() if torch.is_floating_point(value)):
        raise InputError(f"{path} holds weights that are not finite")
    return CVAESet(module.eval(), likelihood, radius)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m latentrobust.convert", description=__doc__)
    parser.add_argument("checkpoint", help="a published .pth file")
    parser.add_argument("out", help="folder to write: config.json and model.safetensors")
    parser.add_argument("--network", required=True, choices=sorted(NETWORKS))
    parser.add_argument("--radius", required=True, type=float, help="of the set, e.g. 14 for RTS (table 4)")
    parser.add_argument("--likelihood", default="bernoulli", choices=["bernoulli", "gaussian"])
    chosen = parser.parse_args(arguments)
    try:
        if not (chosen.radius > 0 and math.isfinite(chosen.radius)):
            raise InputError(f"--radius must be positive and finite, got {chosen.radius}")
        perturbations = import_checkpoint(chosen.checkpoint, chosen.network, chosen.radius, chosen.likelihood)
        folder = save_perturbation_set(perturbations, chosen.out)
    except (InputError, OSError) as error:
        if not is_bad_input(error):
            raise
        print(f"latentrobust convert: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    print(f"perturbation set: {folder}")


if __name__ == "__main__":
    main()
