"""How robust a model is over a perturbation set, for anybody's model and data in one call."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from latentrobust.arguments import Seed, validated
from latentrobust.batch import Batch
from latentrobust.errors import InputError, collecting, one_line, warn
from latentrobust.perturbation_sets.ascent import frozen
from latentrobust.perturbation_sets.base import PerturbationSet
from latentrobust.perturbation_sets.coverage import CoverageSettings
from latentrobust.processes import alone
from latentrobust.robustness.assessor import CertifySettings, RobustSettings
from latentrobust.robustness.checks import check_images
from latentrobust.robustness.criteria import answer
from latentrobust.robustness.inputs import as_images, as_labels, as_model, check_class_names, check_set
from latentrobust.robustness.results import Entry, Results
from latentrobust.seen import Hashes, hashes_of, seen_by, share_seen
from latentrobust.transforms.perturbation import Perturbation

if TYPE_CHECKING:
    from latentrobust.robustness.assessment import Assessed, Assessment, ByKind, Facts, Originals

__all__ = ["CertifySettings", "Results", "RobustSettings", "assess"]

AT_ONCE = 256  # images measured together, whatever the batches of the data
VALUES_AT_ONCE = 1 << 24  # and of large ones as many as have so many values, or give so many logits
EXPECTED = "data must be (x, y) or (x, y, x_tilde), tensors or arrays of one length, batches of them, or a dataset"
Data = Any  # what EXPECTED says, or one of the package's data modules


@validated
def assess(
    model: nn.Module | Callable[[Tensor], Tensor],
    perturbations: Any = None,
    data: Any = None,
    *,
    robust: RobustSettings | None = RobustSettings(),  # noqa: B008 - frozen
    certify: CertifySettings | None = None,
    ood: Mapping[str, Perturbation] | None = None,
    held_out: Any = None,
    corruptions: Any = None,
    coverage: CoverageSettings | None = None,
    seed: Seed = 0,
    journal: str | Path | None = None,
) -> Results:
    """How robust anybody's model is over a perturbation set.

    The command line measures with the same code: the same model, set, data and settings give the same metrics.

    Args:
        model: images in [0, 1] to logits ``[B, classes]``, or ``[B, classes, H, W]`` for a class per pixel; it comes
            back as it was.
        perturbations: any set for these images; None measures accuracy alone. It comes back to its device.
        data: tensors or arrays ``(x, y)``, labels ``[B]`` or ``[B, H, W]`` (negative where a pixel does not count), or
            ``(x, y, x_tilde)``; batches of them (a ``DataLoader``); a ``torch.utils.data.Dataset`` of single examples;
            or one of the package's data modules, whose test pairs are measured by kind.
        robust: attacks and radii; None for no attack. Without stored latent norms, give radii as numbers.
        certify: certification; None for none.
        ood: further perturbations by name, which the clean images are measured under.
        held_out: a `latentrobust.tasks.corruptions.GridAccuracy` of corruptions that are counted with ``ood``.
        corruptions: another, whose accuracies are told apart by kind and severity.
        coverage: measures which share of the perturbed images the set contains, where the data has some.
        seed: of all draws, by (seed, position in the data).
        journal: file to keep finished certificates in; an interrupted call with the same settings goes on from it.

    Raises:
        InputError: for radii, labels, images or models that do not fit, in one line.

    Examples:
        >>> import torch
        >>> from latentrobust.perturbation_sets import PixelBall
        >>> def model(x):  # class 1 where the mean level exceeds one half
        ...     return torch.stack([0.5 - x.flatten(1).mean(1), x.flatten(1).mean(1) - 0.5], 1)
        >>> x, y = torch.full((4, 1, 4, 4), 0.45), torch.zeros(4, dtype=torch.int64)
        >>> results = assess(model, PixelBall((1, 4, 4), "linf", 0.1), (x, y), robust=RobustSettings(radii=[0.02, 0.1]))
        >>> results.value("accuracy/clean"), results.value("robust", radius=0.02), results.value("robust", radius=0.1)
        (1.0, 1.0, 0.0)
    """
    if isinstance(data, PerturbationSet) or (perturbations is not None and _is_data(perturbations)):
        raise InputError("data and perturbations are swapped: assess(model, data=…, perturbations=…)")
    if data is None:
        raise InputError(f"there is no data to assess: {EXPECTED}")
    if hasattr(data, "as_data"):
        raise InputError("data are pairs without splits: give data=pairs.as_data()")
    if journal is not None and Path(journal).is_dir():
        raise InputError(f"journal={journal} is a folder: name a file")
    model = as_model(model)
    if perturbations is not None:
        check_set(perturbations)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    home = _device_of(perturbations)
    with collecting() as found, alone():
        if perturbations is None and (certify is not None or (robust is not None and robust != RobustSettings())):
            warn("no perturbations: attacks and certificates are left out")
        try:
            if perturbations is not None:
                perturbations.to(device)
            results = _measured(
                model, perturbations, data, device, robust, certify, ood, coverage, seed, journal, held_out, corruptions
            )
        finally:
            if perturbations is not None:
                perturbations.to(home)
    own = [] if perturbations is None else [Entry("radius", perturbations.ball.radius)]
    return replace(results, entries=[*own, *results.entries], warnings=list(found))


def _measured(
    model: nn.Module,
    perturbations: PerturbationSet | None,
    data: Data,
    device: torch.device,
    robust: RobustSettings | None,
    certify: CertifySettings | None,
    ood: Mapping[str, Perturbation] | None,
    coverage: CoverageSettings | None,
    seed: int,
    journal: str | Path | None,
    held_out: ByKind | None,
    corruptions: ByKind | None,
) -> Results:
    from latentrobust.robustness.assessment import Assessment  # noqa: PLC0415 - torchmetrics imports matplotlib

    assessment: Assessment | None = None
    known = {"model": model} if seen_by(model) is not None else {}
    over_set = any(settings is not None for settings in (robust, certify, coverage))
    if perturbations is not None and over_set and seen_by(perturbations) is not None:
        known["set"] = perturbations
    hashes: list[np.ndarray] = []
    for batch in batches(data, model, perturbations, device):
        if assessment is None:
            facts = _facts(model, data, batch)
            path = Path(journal) if journal is not None else None
            originals = _originals(data, batch, [grid for grid in (held_out, corruptions) if grid is not None])
            assessment = Assessment(
                model, perturbations, facts, robust, certify, ood, coverage, seed, path, 1.0,
                held_out, corruptions, originals,
            ).to(device)  # fmt: skip
        if (batch.x_tilde is not None) != assessment.facts.has_pairs:
            if assessment.facts.has_pairs:
                raise InputError("the first batch of the data has perturbed images, and a later one has none")
            warn("only some batches of the data have perturbed images: these are left out")
            batch = replace(batch, x_tilde=None)  # noqa: PLW2901
        assessment.update(batch)
        if known and not _is_module(data):
            hashes.append(hashes_of(batch.x.mul(255).round().to(torch.uint8)))
    if assessment is None:
        raise InputError("there is no data to assess")
    results = assessment.compute()
    asked = partial(_hashes, data, hashes)
    shares = {name: share_seen(part, asked, f"the {name}") for name, part in known.items()}
    return replace(
        results,
        entries=[
            *results.entries,
            *(Entry(f"seen/{name}", share) for name, share in shares.items() if share is not None),
        ],
    )


def _hashes(data: Data, given: Sequence[np.ndarray]) -> Hashes | None:
    """Of the images that were measured: a data module's, or those of batches."""
    if _is_module(data):
        return data.hashes("test") if hasattr(data, "hashes") else None
    hashes = np.concatenate(given)
    return Hashes(hashes, np.arange(len(hashes)))


def _originals(data: Data, first: Batch, grids: Sequence[Any]) -> Originals | None:
    """Where corruptions of the images begin, which are prepared here; None where the images themselves will do."""
    if not grids:
        return None
    if not _is_module(data):
        if first.x.shape[1] != 3:
            raise InputError(f"corruptions are for RGB images; got {first.x.shape[1]} channels")
        for grid in grids:
            if grid.grid.test_images == "archive":
                raise InputError(
                    "test_images=archive: an archive has the corrupted versions of a data module's test images; those"
                    " of images that are given themselves are generated"
                )
        return None
    for grid in grids:
        grid.setup(data)
    return partial(data.originals, "test")  # type: ignore[attr-defined]


def _facts(model: nn.Module, data: Data, first: Batch) -> Facts:
    """What is known of the examples, given the first batch of them."""
    from latentrobust.robustness.assessment import Facts, facts_of  # noqa: PLC0415

    per_pixel = first.labels.dim() == 3
    outputs = 0
    if per_pixel:
        with frozen(model), torch.no_grad():
            outputs = answer(model, first.x[:1]).shape[1]
    if _is_module(data):
        if not data.centred:
            raise InputError(
                "models are measured on pairs of an original and its perturbed version, and this data has none"
            )
        check_class_names(model, getattr(data, "class_names", ()))
        return facts_of(data, outputs)
    examples = len(data[0]) if _is_whole(data) else None
    return Facts(has_pairs=first.x_tilde is not None, per_pixel=per_pixel, outputs=outputs, examples=examples)


def batches(
    data: Data, model: nn.Module, perturbations: PerturbationSet | None, device: torch.device
) -> Iterator[Batch]:
    """What is measured, in batches of at most `AT_ONCE`, from any form of data that `assess` takes."""
    if _is_module(data):
        places = torch.arange(data.count("test"), device=device)
        one = data.pairs("test", places[:1])
        for index in places.split(_at_once(one.x, one.labels)):
            batch = data.pairs("test", index)
            yield batch if data.has_pairs else replace(batch, x_tilde=None, offset=None)
        return
    count = 0
    for parts in _parts(data):
        x = as_images(parts[0], model, perturbations)
        check_images(x)
        y = as_labels(parts[1], x)
        y = y if y.dtype.is_floating_point else y.long()
        rest = [as_images(part, model, perturbations, "x_tilde") for part in parts[2:]]
        if rest and rest[0].shape != x.shape:
            raise InputError(f"x and x_tilde must have the same shape, got {list(x.shape)} and {list(rest[0].shape)}")
        if rest:
            check_images(rest[0], "x_tilde")
        yield Batch.of(x, y, rest[0] if rest else None, first=count)
        count += len(x)


def _parts(data: Any) -> Iterable[Sequence[Tensor]]:
    """Batches of two or three tensors or arrays of one length, none too long."""
    if _is_whole(data):
        data = [data]
    elif isinstance(data, Dataset):
        data = DataLoader(data, batch_size=AT_ONCE, collate_fn=_collated, generator=torch.Generator())
    if not isinstance(data, Iterable) or isinstance(data, str | Mapping):
        raise InputError(f"{EXPECTED}; got a {type(data).__name__}")
    for batch in data:
        if _is_whole(batch) and not all(len(part) for part in batch if part.ndim):
            raise InputError("data to assess has no example in it, or a batch without one")
        if (
            not isinstance(batch, Sequence)
            or len(batch) not in (2, 3)
            or not all(isinstance(part, Tensor | np.ndarray) and part.ndim and len(part) for part in batch)
            or len({len(part) for part in batch}) != 1
        ):
            raise InputError(EXPECTED)
        step = _at_once(*batch[:2])
        for start in range(0, len(batch[0]), step):
            yield [part[start : start + step] for part in batch]


def _at_once(x: Tensor | np.ndarray, y: Tensor | np.ndarray) -> int:
    """How many such images are measured together; of maps, each pixel has a logit for each class."""
    values = math.prod(x.shape[1:])
    if y.ndim > 2:
        values = max(values, math.prod(y.shape[1:]) * (_largest(y) + 1))
    return min(max(VALUES_AT_ONCE // max(values, 1), 1), AT_ONCE)


def _largest(y: Tensor | np.ndarray) -> int:
    """The largest class, of labels that nobody has checked yet; 0 where there is none."""
    if isinstance(y, Tensor):
        y = (y.detach().double() if y.dtype.is_floating_point else y.detach()).cpu().numpy()
    largest = float(y.max()) if y.size and y.dtype.kind in "buif" else 0.0
    return max(int(largest), 0) if math.isfinite(largest) else 0


def _collated(items: list[Any]) -> Any:
    try:
        return default_collate(items)
    except TypeError as error:  # images that are no tensors yet
        raise InputError(f"{EXPECTED}: {one_line(error)}") from None


def _is_whole(data: Any) -> TypeGuard[Sequence[Tensor]]:
    return isinstance(data, Sequence) and bool(data) and all(isinstance(part, Tensor | np.ndarray) for part in data)


def _is_module(data: Any) -> TypeGuard[Assessed]:
    return hasattr(data, "first_kinds") and hasattr(data, "pairs")


def _is_data(value: Any) -> bool:
    return _is_whole(value) or _is_module(value) or isinstance(value, DataLoader | Dataset)


def _device_of(perturbations: PerturbationSet | None) -> torch.device:
    parts = [] if perturbations is None else [*perturbations.parameters(), *perturbations.buffers()]
    return parts[0].device if parts else torch.device("cpu")
