"""How robust a model is over a perturbation set: accuracy, worst case under attacks, certificates.

`Assessor` measures a batch and says what the columns mean; `assess` does it for anybody's model and data in one call.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from latentrobust.arguments import Seed, validated
from latentrobust.batch import Batch
from latentrobust.errors import InputError, collecting
from latentrobust.perturbation_sets.base import PerturbationSet
from latentrobust.robustness.assessor import Assessor, CertifySettings, RobustSettings, Table, below, is_right
from latentrobust.robustness.inputs import as_images, as_labels, as_model, check_set
from latentrobust.robustness.smoothing import PROMISE

__all__ = ["CertifySettings", "Report", "RobustSettings", "assess"]


@dataclass(frozen=True)
class Report:
    """What `assess` found.

    Attributes:
        metrics: flat, names as in ``metrics.json``.
        per_example: tables (``accuracy``, ``robust``, ``certified``) of columns by name.
        warnings: what speaks against believing the metrics.
        only_pgd: whether robust accuracies come from PGD alone, and are labelled so.
    """

    metrics: dict[str, float]
    per_example: dict[str, Table]
    warnings: list[str] = field(default_factory=list)
    only_pgd: bool = False

    def to_json(self) -> str:
        """The metrics as a JSON object, and the ``warnings``; NaN and infinities as null."""
        flat = {name: value if math.isfinite(value) else None for name, value in sorted(self.metrics.items())}
        return json.dumps({**flat, "warnings": self.warnings}, indent=2)

    def to_markdown(self) -> str:
        """The metrics as a table, warnings, and what a certificate promises where there are certificates."""
        lines = ["| metric | value |", "|---|---|"]
        for name, value in sorted(self.metrics.items()):
            alone = " (PGD only)" if self.only_pgd and name.startswith("robust/") and "eps=" in name else ""
            lines.append(f"| {name}{alone} | {value:.4g} |")
        lines += [line for warning in self.warnings for line in ("", f"**Warning:** {warning}.")]
        if "certified" in self.per_example:
            lines += ["", PROMISE]
        return "\n".join(lines) + "\n"


@validated
def assess(
    model: nn.Module | Callable[[Tensor], Tensor],
    perturbations: PerturbationSet,
    data: Iterable[Sequence[Tensor]] | Sequence[Tensor],
    *,
    robust: RobustSettings | None = RobustSettings(),  # noqa: B008 - frozen
    certify: CertifySettings | None = None,
    seed: Seed = 0,
    journal: str | Path | None = None,
) -> Report:
    """How robust anybody's model is over a perturbation set.

    Args:
        model: images in [0, 1] to logits ``[B, classes]``, or ``[B, classes, H, W]`` for a class a pixel; it comes
            back as it was.
        perturbations: any set for these images; moved to the model's device.
        data: tensors ``(x, y)``, labels ``[B]`` or ``[B, H, W]`` (negative where a pixel does not count), or
            ``(x, y, x_tilde)``, or batches of them (a ``DataLoader`` will do).
        robust: attacks and radii; None for no attack. Without stored latent norms, give radii as numbers.
        certify: certification; None for none.
        seed: of all draws, by (seed, position in the data).
        journal: file to keep finished certificates in; an interrupted call with the same settings goes on from it.

    Raises:
        InputError: for radii, labels, images or models that do not fit, in one line.
    """
    model, perturbations = as_model(model), check_set(perturbations)
    with collecting() as found:
        report = _assess(model, perturbations, data, robust, certify, seed, journal)
    return replace(report, warnings=list(found), only_pgd=robust is not None and robust.only_pgd)


def _assess(
    model: nn.Module,
    perturbations: PerturbationSet,
    data: Iterable[Sequence[Tensor]] | Sequence[Tensor],
    robust: RobustSettings | None,
    certify: CertifySettings | None,
    seed: int,
    journal: str | Path | None,
) -> Report:
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    perturbations = perturbations.to(device)
    path = Path(journal) if journal is not None else None
    whole = isinstance(data, Sequence) and len(data) > 0 and isinstance(data[0], Tensor | np.ndarray)
    count = len(data[0]) if whole else None  # type: ignore[index]
    limits = [limit for limit in (count, certify.examples if certify else None) if limit is not None]
    assessor: Assessor | None = None
    rows: dict[str, list[dict[str, Tensor]]] = {"accuracy": [], "robust": [], "certified": []}
    count = 0
    for batch in _batches(data):
        x = as_images(batch[0], model, perturbations)
        y = as_labels(batch[1], x)
        rest = [as_images(part, model, perturbations, "x_tilde") for part in batch[2:]]
        examples = Batch.of(x, y, rest[0] if rest else None, first=count)
        count += len(x)
        if assessor is None:
            expected = min(limits, default=None)
            assessor = Assessor(model, perturbations, robust, certify, seed, path, expected, y.dim() == 3)
        right = {"index": examples.index, "clean": is_right(model, x, y)}
        if examples.x_tilde is not None:
            right["perturbed"] = is_right(model, examples.x_tilde, y)
        rows["accuracy"].append(right)
        if robust is not None and (part := below(examples, robust.examples)) is not None:
            rows["robust"].append({"index": part.index, **assessor.attack(part)[0]})
        if certify is not None and (part := below(examples, certify.examples)) is not None:
            rows["certified"].append({"index": part.index, **assessor.certificates(part)})
    if assessor is None:
        raise InputError("there is no data to assess")
    tables = {
        name: {column: torch.cat([row[column] for row in part]).cpu().numpy() for column in part[0]}
        for name, part in rows.items()
        if part
    }
    metrics = {
        f"accuracy/{name}": float(np.nanmean(column.astype(np.float64)))
        for name, column in tables["accuracy"].items()
        if name != "index"
    }
    if "robust" in tables:
        metrics |= assessor.robust_metrics(tables["robust"])
    if "certified" in tables:
        metrics |= assessor.certified_metrics(tables["certified"])
    return Report({"radius": perturbations.ball.radius, **metrics}, tables)


def _batches(data: Any) -> Iterable[Sequence[Tensor]]:
    expected = "data must be (x, y) or (x, y, x_tilde), tensors or arrays of one length, or batches of them"
    if isinstance(data, Sequence) and data and all(isinstance(part, Tensor | np.ndarray) for part in data):
        data = [data]
    if not isinstance(data, Iterable) or isinstance(data, str | Mapping):
        raise InputError(f"{expected}; got a {type(data).__name__}")
    for batch in data:
        if (
            not isinstance(batch, Sequence)
            or len(batch) not in (2, 3)
            or not all(isinstance(part, Tensor | np.ndarray) and part.ndim and len(part) for part in batch)
            or len({len(part) for part in batch}) != 1
        ):
            raise InputError(expected)
        for start in range(0, len(batch[0]), 256):
            yield [part[start : start + 256] for part in batch]
