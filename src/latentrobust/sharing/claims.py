"""Claims about a model that somebody else can repeat: numbers with hashes of everything that they depend on."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import latentrobust
from latentrobust.arguments import Seed, validated
from latentrobust.errors import InputError
from latentrobust.perturbation_sets.base import PerturbationSet
from latentrobust.perturbation_sets.coverage import CoverageSettings
from latentrobust.robustness.assess import CertifySettings, RobustSettings, assess, batches
from latentrobust.robustness.inputs import as_model

FORMAT = 2


@dataclass(frozen=True)
class Claims:
    """What is claimed of a model.

    Attributes:
        model: SHA-256 of its weights, buffers and modules.
        perturbations: SHA-256 of the set's and of the norms and coverage that give its radii their names; its radius.
        data: SHA-256 of the images and labels, and their number.
        settings: as text, everything that was not a default too; and their SHA-256.
        claims: the numbers, named as in ``metrics.json``; NaN and infinities are None.
        warnings: what speaks against believing them.
        versions: of this package and PyTorch. Another version of PyTorch, or another machine, may round otherwise.

    Examples:
        >>> import torch, latentrobust as lr
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2)).eval()
        >>> x = torch.rand(2, 1, 4, 4)
        >>> y = model(x).argmax(1)
        >>> claims = lr.benchmark_model(model, lr.PixelBall((1, 4, 4), "linf", 0.1), (x, y), robust=None)
        >>> claims.claims["accuracy/clean"], len(claims.data["sha256"])
        (1.0, 64)
    """

    model: Mapping[str, Any]
    perturbations: Mapping[str, Any]
    data: Mapping[str, Any]
    settings: Mapping[str, Any]
    claims: Mapping[str, float | None]
    warnings: Sequence[str]
    versions: Mapping[str, str]

    def to_json(self) -> str:
        """As a JSON object, with keys in order: equal claims are equal text."""
        return json.dumps({"format": FORMAT, **vars(self)}, indent=2, sort_keys=True, ensure_ascii=False)


@validated
def benchmark_model(
    model: nn.Module,
    perturbations: PerturbationSet,
    data: Any,
    *,
    robust: RobustSettings | None = RobustSettings(),  # noqa: B008 - frozen
    certify: CertifySettings | None = None,
    coverage: CoverageSettings | None = None,
    seed: Seed = 0,
) -> Claims:
    """`assess` a model, and say of what the numbers are.

    The same model, set, data, settings and seed give the same claims, byte for byte, on the same machine.

    Args:
        model: images in [0, 1] to logits.
        perturbations: the set.
        data: as for `assess`, in an order that does not change; it is read twice.
        robust: attacks and radii; None for no attack.
        certify: certification; None for none.
        coverage: of the set, where the data has perturbed images.
        seed: of all draws.

    Raises:
        InputError: as `assess` does.

    Examples:
        >>> import torch, latentrobust as lr
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2)).eval()
        >>> x = torch.rand(2, 1, 4, 4)
        >>> y = model(x).argmax(1)
        >>> s = lr.PixelBall((1, 4, 4), "linf", 0.1)
        >>> claims = benchmark_model(model, s, (x, y), robust=lr.RobustSettings(radii=[1e-6]))
        >>> claims.claims["robust/eps=1e-06"]
        1.0
    """
    if not isinstance(model, nn.Module):
        raise InputError("claims are about a torch.nn.Module: a function has no weights to tell it by")
    text = {"robust": repr(robust), "certify": repr(certify), "coverage": repr(coverage), "seed": seed}
    printed = [*map(str, text.values()), repr(model), repr(perturbations)]
    if any(re.search(r" at 0x[0-9a-f]+>", part) for part in printed):
        raise InputError("something in the model, the set or the settings prints as an address: give it a __repr__")
    module = as_model(model)
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    if isinstance(data, Iterator):
        raise InputError("claims read the data twice, and this can be read once: give a list of batches")
    columns: dict[str, Any] = {}  # a hash each, so that batches of another size give the same
    count = 0
    for batch in batches(data, module, perturbations, device):
        for name, part in (("x", batch.x), ("y", batch.labels), ("x_tilde", batch.x_tilde)):
            if part is not None:
                shape = f"{name} {part.dtype} {list(part.shape[1:])}"
                _add(columns.setdefault(shape, hashlib.sha256()), part)
        count += len(batch)
    of_data = hashlib.sha256(json.dumps({name: column.hexdigest() for name, column in columns.items()}).encode())
    results = assess(
        model, data=data, perturbations=perturbations, robust=robust, certify=certify, coverage=coverage, seed=seed
    )
    numbers = {name: value if math.isfinite(value) else None for name, value in sorted(results.metrics.items())}
    return Claims(
        model={"sha256": digest_of(module)},
        perturbations={"sha256": _digest_of_set(perturbations), "radius": perturbations.ball.radius},
        data={"sha256": of_data.hexdigest(), "pairs": count},
        settings={**text, "sha256": hashlib.sha256(json.dumps(text, sort_keys=True).encode()).hexdigest()},
        claims=numbers,
        warnings=list(results.warnings),
        versions={"latentrobust": latentrobust.__version__, "torch": str(torch.__version__)},
    )


def digest_of(module: nn.Module) -> str:
    """SHA-256 of a module's weights and buffers by name, also of those that it does not store, and of how it prints."""
    total = hashlib.sha256(repr(module).encode())
    for name, tensor in {**module.state_dict(), **dict(module.named_buffers())}.items():
        total.update(f"\0{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        _add(total, tensor)
    return total.hexdigest()


def _digest_of_set(perturbations: PerturbationSet) -> str:
    """`digest_of` a set, and of what its radii by name depend on."""
    coverage = perturbations.coverage
    named = {"norms": perturbations.latent_norms, "coverage": None if coverage is None else coverage.to_dict()}
    return hashlib.sha256(f"{digest_of(perturbations)}{json.dumps(named, sort_keys=True)}".encode()).hexdigest()


def _add(total: Any, tensor: Tensor) -> None:
    total.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
