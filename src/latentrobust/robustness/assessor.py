"""What is measured of a model over a set, and how, a batch at a time: attacks and certificates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import latentrobust
from latentrobust.arguments import Count, Natural, NonNegative, Positive, Probability, RadiusName, validated
from latentrobust.batch import Batch
from latentrobust.errors import InputError, warn
from latentrobust.keys import Purpose
from latentrobust.perturbation_sets.ascent import frozen
from latentrobust.perturbation_sets.base import PerturbationSet
from latentrobust.robustness.attacks import PGD, Attack, Found, WorstOf, latent_autoattack
from latentrobust.robustness.certificates import ALL_PIXELS, CertificateTable, ImageCertificates, PixelCertificates
from latentrobust.robustness.criteria import PixelAccuracy, answer, criterion_for
from latentrobust.robustness.journal import CertificateJournal, checksum, fingerprint
from latentrobust.robustness.progress import Progress
from latentrobust.robustness.radii import attack_radii, certified_radii, names_of
from latentrobust.robustness.results import Entry, Table, printed
from latentrobust.robustness.smoothed_attack import attack_smoothed
from latentrobust.robustness.smoothing import SmoothedModel
from latentrobust.robustness.statistics import Fixed, GroupSequential, Procedure, noise_level
from latentrobust.transforms import random

Radius = NonNegative | RadiusName
PROBES = 8  # noisy versions of the first image whose logits tell a model from another


def default_attacks() -> dict[str, Attack]:
    """The paper's PGD, and a short latent AutoAttack, as the command line has them by default."""
    short = latent_autoattack(steps=20, restarts=2, targets=3, draws=20, refinements=40)
    return {"pgd": PGD(), "short_autoattack": short}


@validated
@dataclass(frozen=True)
class RobustSettings:
    """Attacks and radii.

    Args:
        attacks: by name; the worst case is taken over all of them. By default PGD and a short latent AutoAttack.
        radii: numbers, ``"p25"``, ``"p50"``, ``"p75"`` (percentiles of the latent norms stored with the set) or
            ``"full"``; null for the percentiles that the set stores, and full. Radius 0 is always reported too.
        examples: attack the first so many; null for all.

    Examples:
        >>> from latentrobust import PGD
        >>> RobustSettings(attacks={"pgd": PGD(steps=50)}, radii=[1.0, "p50", "full"], examples=500).only_pgd
        True
    """

    attacks: Mapping[str, Attack] = field(default_factory=default_attacks)
    radii: Sequence[Radius] | None = None
    examples: Count | None = None

    def __post_init__(self) -> None:
        if not self.attacks or _empty(self.radii):
            raise InputError("evaluation.robust needs at least one attack and one radius")

    @property
    def only_pgd(self) -> bool:
        """Whether nothing stronger than PGD is tried, whose steps get stuck where the loss is rough."""
        return len(self.pgd_alone) == len(self.attacks)

    @property
    def pgd_alone(self) -> list[str]:
        """Names of the attacks that are nothing but PGD."""
        return [name for name, attack in self.attacks.items() if _is_pgd(attack)]


@validated
@dataclass(frozen=True)
class CertifySettings:
    """How a smoothed model is certified; n₀, n and α are the paper's by default.

    Args:
        sigma: noise level; null for the smallest that can certify ``target``.
        target: a radius; null for the largest of ``radii``.
        radii: ℓ2 radii at which certified accuracy is reported, named as for `RobustSettings` (`certified_radii` says
            what names mean in ℓ∞ sets); null for the percentiles that the set stores, or its own radius.
        n0: draws that choose the class.
        n: draws that bound its probability.
        alpha: error probability of each certificate.
        adaptive: stop an example early once all radii are decided, with the same guarantee.
        examples: certify the first so many; null for all.
        batch: images that go through the model at once.
        attack_steps: of a search at each radius for the worst case of the *smoothed* model, which the certificates are
            reported beside (`attack_smoothed`); 0 for none. Models of a class per pixel are not attacked.
        cuda_graphs: as for `SmoothedModel`.
        bfloat16: as for `SmoothedModel`.

    Examples:
        >>> settings = CertifySettings(radii=["p50", "p75"], target="p75", n=1000)
        >>> settings.adaptive, settings.alpha
        (True, 0.001)
    """

    sigma: Positive | None = None
    target: Positive | RadiusName | None = None
    radii: Sequence[Radius] | None = None
    n0: Count = 100
    n: Count = 10_000
    alpha: Probability = 0.001
    adaptive: bool = True
    examples: Count | None = None
    batch: Count = 512
    attack_steps: Natural = 10
    cuda_graphs: bool | None = None
    bfloat16: bool = False

    def __post_init__(self) -> None:
        if _empty(self.radii):
            raise InputError("evaluation.certify needs at least one radius")
        _ = self.procedure

    @property
    def procedure(self) -> Procedure:
        """Fixed or group-sequential."""
        return GroupSequential(self.n, self.alpha) if self.adaptive else Fixed(self.n, self.alpha)


def below(batch: Batch, limit: int | None) -> Batch | None:
    """The part of a batch whose index is below a limit, or None where there is none."""
    if limit is None:
        return batch
    part = batch.at(batch.index < limit)
    return part if len(part) else None


def is_right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Whether the model is right about each image, or about which share of its pixels, as float: ``[B]``.

    Raises:
        InputError: for logits or labels that do not fit.
    """
    with frozen(model), torch.no_grad():
        logits = answer(model, x)
    criterion = criterion_for(y)
    criterion.check(logits, y)
    return criterion.accuracy(logits, y)


class Assessor:
    """Measures one model over one set, batch by batch.

    Args:
        model: images in [0, 1] to logits.
        perturbations: any set.
        robust: attacks, or None.
        certify: certification, or None.
        seed: of all draws, by (seed, example).
        journal: file for finished certificates, or None.
        expected: how many certificates there will be, for the estimate of the time left.
        attacked: how many examples will be attacked, for the same.
        per_pixel: whether each pixel has a class, so that certificates are of pixels.
        title: of the model, with which lines about how far it is begin.

    Raises:
        InputError: for radii or noise levels that do not fit the set.
    """

    def __init__(
        self,
        model: nn.Module,
        perturbations: PerturbationSet,
        robust: RobustSettings | None = None,
        certify: CertifySettings | None = None,
        seed: int = 0,
        journal: Path | None = None,
        expected: int | None = None,
        per_pixel: bool = False,
        attacked: int | None = None,
        title: str = "",
    ) -> None:
        self.model, self.perturbations, self.seed, self._per_pixel = model, perturbations, seed, per_pixel
        self.robust, self.certify = robust, certify
        self.radii = attack_radii(robust.radii, perturbations) if robust else {}
        self.eps = printed(self.radii)
        self.targets = certified_radii(certify.radii, perturbations) if certify else {}
        largest, own = max(self.targets, default=0.0), perturbations.ball.radius
        if certify and perturbations.ball.norm == "l2" and largest > own * (1 + 1e-6):
            warn(f"certified radius {largest:g} exceeds the set's own of {own:g}: beyond it the set was not measured")
        self.sigma = 0.0
        self.certificate_table: CertificateTable | None = None
        self._journal: CertificateJournal | None = None
        self._progress = Progress(expected, title=title)
        searches = len(robust.attacks) * len(set(self.radii)) if robust else 0
        self._searched = Progress(attacked and attacked * searches, "attacked", shares=True, title=title)
        if certify:
            self.sigma = self._noise(certify)
            self.certificate_table = (
                PixelCertificates(self.sigma, self.targets, certify.procedure)
                if per_pixel
                else ImageCertificates(self.sigma, self.targets, attacked=certify.attack_steps > 0)
            )
            if isinstance(self.certificate_table, PixelCertificates) and self.certificate_table.together:
                self._warn_out_of_reach(self.certificate_table)
        self._journal_path = journal

    def _noise(self, certify: CertifySettings) -> float:
        target = max(self.targets)
        if certify.target is not None:
            (target,) = certified_radii([certify.target], self.perturbations)
        if certify.sigma is None and target == 0:
            raise InputError("certificates at radius 0 alone choose no noise level: give sigma, or a target above 0")
        if certify.sigma is None:
            return noise_level(target, procedure=certify.procedure)
        needed = {radius: noise_level(radius, procedure=certify.procedure) for radius in self.targets if radius > 0}
        beyond = [f"{radius:g} (needs {level:.5g})" for radius, level in needed.items() if level > certify.sigma]
        if beyond:
            warn(
                f"sigma={certify.sigma:g} cannot certify the radii {', '.join(beyond)} with n={certify.n},"
                f" alpha={certify.alpha:g}{', adaptive' if certify.adaptive else ''}",
                stacklevel=4,
            )
        return certify.sigma

    def _warn_out_of_reach(self, certificates: PixelCertificates) -> None:
        """A noise level is chosen for a pixel on its own; for all at once α is shared."""
        pixels = math.prod(self.perturbations.image_shape[1:])
        reach = certificates.reach(pixels)[ALL_PIXELS]
        if beyond := [radius for radius in self.targets if radius > reach * (1 + 1e-6)]:
            warn(
                f"all {pixels} pixels of an image at once can be certified within {reach:.3g}, whatever the model:"
                f" certified_image is 0 at {', '.join(f'{radius:.4g}' for radius in beyond)} (sigma="
                f"{certificates.sigma * max(beyond) / reach:.3g} would reach that, at the price of noisier images)"
            )

    @property
    def robust_columns(self) -> list[str]:
        """Names of the attack table's columns."""
        if self.robust is None:
            return []
        each = [f"{attack}/eps={eps}" for attack in self.robust.attacks for eps in self.eps.values()]
        fooling = [] if self._per_pixel else ["smallest_fooling_norm"]  # no map counts as fooled
        return [*each, "margin", *fooling, "queries"]

    @property
    def certificate_columns(self) -> list[str]:
        """Names of the certificate table's columns."""
        return list(self.certificate_table.columns) if self.certificate_table is not None else []

    def attack(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Found]]:
        """The attack table's columns for a batch, and what each attack found.

        ``<attack>/eps=<ε>`` is 1 where the model stays right, or the share of pixels that do. Margin and smallest
        offset that fools (infinite where none was found; not of maps) are those of the worst attack, the margin at the
        largest radius.
        """
        assert self.robust is not None
        keys = random.example_keys(self.seed, batch.index, Purpose.ASSESSMENT)
        columns: dict[str, Tensor] = {}
        found: dict[str, Found] = {}
        smallest = torch.full((len(batch.x),), math.inf, device=batch.x.device)
        self._searched.skip(0)  # the clock starts
        for number, (name, attack) in enumerate(self.robust.attacks.items()):
            found[name] = attack(
                self.model, self.perturbations, batch.x, batch.labels, radii=list(self.radii),
                keys=random.fold_in(keys, number),  # or all attacks would start at the same points
                x_tilde=batch.x_tilde, offset=batch.offset, told=self._searched.done,
            )  # fmt: skip
            remaining = attack.judge(batch.labels).remaining(found[name].score)
            for place, radius in enumerate(self.radii):
                columns[f"{name}/eps={self.eps[radius]}"] = remaining[place].float()
            sizes = torch.where(found[name].fooled, self.perturbations.ball.size(found[name].offsets), math.inf)
            smallest = torch.minimum(smallest, sizes.amin(0).float())
        columns["margin"] = self._margin(batch.labels, found).float()
        if not self._per_pixel:
            columns["smallest_fooling_norm"] = smallest
        columns["queries"] = torch.stack([part.queries.amax(0) for part in found.values()]).sum(0).float()
        return columns, found

    def _margin(self, labels: Tensor, found: Mapping[str, Found]) -> Tensor:
        """The smallest score at the largest radius; of maps the smallest share of right pixels, beyond one threshold.

        Attacks may lower that share to thresholds of their own, which scores are counted from.
        """
        scores = [part.score[-1] for part in found.values()]
        criteria = [attack.judge(labels) for attack in self.robust.attacks.values()] if self.robust is not None else []
        shares = [criterion for criterion in criteria if isinstance(criterion, PixelAccuracy)]
        if len(shares) == len(scores):
            least = min(of.threshold for of in shares)
            scores = [score + (of.threshold - least) for of, score in zip(shares, scores, strict=True)]
        return torch.stack(scores).amin(0)

    def _open_journal(self, path: Path, x: Tensor) -> CertificateJournal:
        """The journal, for certificates of this model: of its weights, and of what it answers around ``x [1, *image]``.

        A forward pass may have changed where weights and names have not.
        """
        assert self.certify is not None
        settings = {name: getattr(self.certify, name) for name in ("n0", "n", "alpha", "adaptive", "attack_steps")}
        settings |= {"bfloat16": True} if self.certify.bfloat16 else {}
        settings |= {
            "looks": [list(look) for look in self.certify.procedure.looks],
            "sigma": self.sigma,
            "radii": sorted(self.targets),
            "seed": self.seed,
            "version": latentrobust.__version__,
        }
        settings |= {"set": fingerprint(self.perturbations), "weights": fingerprint(self.model)}
        noise = random.uniform(random.example_keys(0, x.new_zeros(1).long(), Purpose.PROBES), tuple(x.shape[1:]))
        asked = {"noise": noise.to(x.dtype), f"image {checksum(x):08x}": x}
        return CertificateJournal(path, settings, {name: self._answers(image) for name, image in asked.items()})

    def _answers(self, x: Tensor) -> list[float]:
        """Logits, or some of a map's, for a few noisy versions of an image ``[1, *image]``."""
        with frozen(self.model, self.perturbations), torch.no_grad():
            s = self.perturbations.at(x)
            keys = random.example_keys(self.seed, torch.arange(PROBES, device=x.device)[:, None], Purpose.PROBES)
            u = self.sigma * random.normal(keys, s.ball.shape)
            logits = answer(self.model, s.decode(u.to(s.offset_dtype))[:, 0]).float().flatten(1)
        logits = logits[:, :: max(logits.shape[1] // 64, 1)]
        return [float(f"{value:.6g}") for value in logits.flatten().tolist()]

    def certificates(self, batch: Batch, chunk: int = 8) -> dict[str, Tensor]:
        """The certificate table's columns for a batch, a few examples at a time; journaled ones are not made again."""
        assert self.certify is not None
        assert self.certificate_table is not None
        settings = self.certify
        smoothed = SmoothedModel(
            self.model, self.perturbations, self.sigma, batch=settings.batch, cuda_graphs=settings.cuda_graphs,
            bfloat16=settings.bfloat16,
        )  # fmt: skip
        indices = batch.index.tolist()
        known: dict[int, dict[str, float]] = {}
        if self._journal is None and self._journal_path is not None:
            self._journal = self._open_journal(self._journal_path, batch.x[:1])
        if self._journal is not None:
            pictures = {
                index: checksum(label, checksum(image))
                for index, image, label in zip(indices, batch.x.cpu(), batch.labels.cpu(), strict=True)
            }
            done = self._journal.done
            known = {i: done[i] for i in indices if i in done and done[i].get("image") == pictures[i]}
        todo = [row for row, index in enumerate(indices) if index not in known]
        self._progress.skip(len(indices) - len(todo))
        for start in range(0, len(todo), chunk):
            rows = torch.tensor(todo[start : start + chunk], device=batch.x.device)
            keys = random.example_keys(self.seed, batch.index[rows], Purpose.CERTIFICATES)
            found = smoothed.certify(
                batch.x[rows], keys, n0=settings.n0, n=settings.n, alpha=settings.alpha,
                adaptive=settings.adaptive, targets=list(self.targets),
            )  # fmt: skip
            columns = self.certificate_table.rows(found, batch.labels[rows])
            if isinstance(self.certificate_table, ImageCertificates) and self.certificate_table.attacked:
                targets = list(self.targets)
                right = attack_smoothed(
                    smoothed, batch.x[rows], batch.labels[rows], targets, keys, steps=settings.attack_steps
                )
                columns |= dict(zip(self.certificate_table.attack_columns, right.float(), strict=True))
            lists = zip(*(column.tolist() for column in columns.values()), strict=True)
            new = {
                index: dict(zip(columns, values, strict=True))
                for index, values in zip(batch.index[rows].tolist(), lists, strict=True)
            }
            if self._journal is not None:
                self._journal.add({index: {**new[index], "image": pictures[index]} for index in new})
            known |= new
            self._progress.done(len(rows))
        return {
            name: torch.tensor([known[i][name] for i in indices], dtype=torch.float64, device=batch.x.device)
            for name in self.certificate_table.columns
        }

    def robust_entries(self, table: Table) -> list[Entry]:
        """Robust accuracy by attack and radius, and their worst case."""
        assert self.robust is not None
        found = []
        for radius, name in self.radii.items():
            eps, names = self.eps[radius], tuple(names_of(name))
            right = np.stack([table[f"{attack}/eps={eps}"] for attack in self.robust.attacks]).astype(np.float64)
            for attack, column in zip(self.robust.attacks, right, strict=True):
                found.append(Entry("robust", float(np.nanmean(column)), attack, radius, names))
            found.append(Entry("robust", float(np.nanmean(right.min(0))), None, radius, names))
        return [*found, Entry("robust/examples", float(len(table["margin"])))]

    def certified_entries(self, table: Table) -> list[Entry]:
        """What `certificate_table` makes of it."""
        assert self.certificate_table is not None
        return self.certificate_table.entries(table)


def _is_pgd(attack: Attack) -> bool:
    return all(map(_is_pgd, attack.attacks)) if isinstance(attack, WorstOf) else type(attack) is PGD


def _empty(radii: Sequence[Radius] | None) -> bool:
    return radii is not None and not len(radii)
