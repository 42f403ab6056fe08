"""The card of a set or a model: what it is, what was measured, what it cannot do; written from the run."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

from statsmodels.stats.proportion import proportion_confint

from latentrobust.errors import InputError
from latentrobust.files import read_json, read_metrics, sha256_of
from latentrobust.perturbation_sets.ball import SIGNS
from latentrobust.perturbation_sets.judgement import judged, too_coarse
from latentrobust.perturbation_sets.stored import CONFIG, WEIGHTS
from latentrobust.remote import Kind
from latentrobust.reporting.metric_names import is_share
from latentrobust.reporting.quality import ROWS, usage
from latentrobust.run_folder import DONE, has_effect, of_a_run

PICTURES = {
    "perturbation_set": ("samples.png", "pairs.png", "perturbed.png"),
    "model": ("adversarial", "robust_accuracy.png"),
}
LIMITS = {
    "perturbation_set": (
        "It holds perturbations like those of the pairs that it was learned from, of images like those; of others it"
        " says nothing.",
        "A search in it that finds nothing proves nothing.",
        "A certificate over it is about the set, not about every change that could happen outside it.",
    ),
    "model": (
        "Robust accuracies are what these attacks left: an upper bound of the truth.",
        "They hold over one perturbation set alone, within the radius of each row, on the data named below.",
    ),
}


# Of a flow that no pairs were encoded with.
OF_IMAGES = (
    "It was learned from single images, and its radius was chosen: it holds images whose latents are near, and says"
    " nothing of which perturbations occur."
)
OF_FLOWS = {
    "bits_per_dim": "Bits per dimension of test images, under the noise of the training; 8 is no knowledge at all.",
    "round_trip_error": "Largest error of a pixel of an image that is encoded and decoded.",
}


class Stored(NamedTuple):
    """A set or model in a run's folder, with what is known of it.

    ``prefix`` is what the names of its metrics begin with; ``folder`` is where its two files lie.
    """

    kind: Kind
    folder: Path
    run: Path
    prefix: str


def stored_in(run: str | Path, model: str | None = None) -> Stored:
    """The set of a finished run, or the model of that name (empty for the only one).

    Raises:
        InputError: if the folder is not that of a finished run, or holds no such thing.
    """
    run = Path(run)
    if of_a_run(run) is None or not (run / DONE).is_file():
        raise InputError(f"{run} is not the folder of a finished run: name one (paths.output_dir of the command)")
    if model is None and (run / "perturbation_set" / CONFIG).is_file():
        return Stored("perturbation_set", run / "perturbation_set", run, "")
    place = run / "models" / model / "model" if model else run / "model"
    if not (place / CONFIG).is_file():
        there = sorted(path.parent.parent.name for path in run.glob(f"models/*/model/{CONFIG}"))
        remedy = f"; its models are {', '.join(there)}: name one" if there else ""
        if model and (run / "model" / CONFIG).is_file():
            remedy = "; its only model has no name: leave the name out"
        raise InputError(f"{run} holds no {f'model {model}' if model else 'set'}{remedy}")
    return Stored("model", place, run, f"{model}/" if model else "")


def write_shareable(found: Stored, folder: str | Path, licence: str, title: str | None = None) -> Path:
    """Write a folder that others can load, and read: the set or model, ``README.md``, ``metrics.json``, a picture.

    Args:
        found: what to share.
        folder: new, or empty.
        licence: of the data, as its owner states it; an identifier such as ``cc-by-4.0``, or a sentence.
        title: of the card; None for the run's name.

    Raises:
        InputError: for a folder with something in it.
        OSError: if it cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty: name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        partial = Path(scratch) / "shared"
        _fill(partial, found, licence, title)
        partial.replace(folder)  # whole, or not at all
    return folder


def _fill(folder: Path, found: Stored, licence: str, title: str | None) -> None:
    folder.mkdir()
    for name in (CONFIG, WEIGHTS):
        shutil.copyfile(found.folder / name, folder / name)
    metrics, warnings = read_metrics(found.run)
    # Not those about other models of the run.
    others = [f"{path.name}: " for path in (found.run / "models").glob("*") if f"{path.name}/" != found.prefix]
    warnings = [text for text in warnings if not text.startswith(tuple(others))]
    named = ((name, value) for name, value in metrics.items() if name.startswith(found.prefix))
    own = {name: value if math.isfinite(value) else None for name, value in named}
    (folder / "metrics.json").write_text(json.dumps({**own, "warnings": warnings}, indent=2) + "\n")
    picture = next(iter(_pictures(found)), None)
    if picture is not None:
        shutil.copyfile(picture, folder / "picture.png")
    (folder / "README.md").write_text(card(found, metrics, warnings, licence, title, picture is not None))


def _pictures(found: Stored) -> Iterator[Path]:
    figures = found.run / "figures"
    ending = f"_{found.prefix.rstrip('/')}.png" if found.prefix else ".png"
    for name in PICTURES[found.kind]:
        path = figures / (name if name.endswith(".png") else f"{name}{ending}")
        if path.is_file():
            yield path


def card(
    found: Stored,
    metrics: Mapping[str, float],
    warnings: Sequence[str],
    licence: str,
    title: str | None = None,
    has_picture: bool = False,
) -> str:
    """Markdown, with a header that the Hugging Face hub reads."""
    configuration = of_a_run(found.run) or {}
    description: Any = read_json(found.folder / CONFIG)
    named = title or str(configuration.get("name") or found.run.name)
    is_set = found.kind == "perturbation_set"
    task = (
        "perturbation-set" if is_set else "image-segmentation" if _of_pixels(found, metrics) else "image-classification"
    )
    identifier = licence if " " not in licence.strip() else "other"
    lines = [
        "---",
        "library_name: latentrobust",
        f"license: {identifier}",
        f"tags: [adversarial-robustness, {task}]",
        "---",
        "",
        f"# {named}",
        "",
        _what(found, description, metrics),
        "",
    ]
    if has_picture:
        alt = "random draws from the set" if is_set else "what attacks find"
        lines += [f"![{alt}](picture.png)", ""]
    rows = _of_set(metrics) if is_set else _of_model(found, metrics, configuration)
    if rows:
        lines += [
            "## What was measured",
            "",
            _measured_on(found, metrics),
            *([] if is_set else _how(found, metrics, configuration)),
            "",
            "| | | |",
            "|---|---|---|",
        ]
        lines += [*(f"| {' | '.join(row)} |" for row in rows), ""]
    if warnings:
        lines += ["## Warnings", "", *(f"- {warning}" for warning in warnings), ""]
    lines += ["## What it does not say", "", *(f"- {limit}" for limit in _limits(found, description)), ""]
    lines += ["## Use", "", "```python", _usage(found.kind, _needs_label(description)), "```", ""]
    given = [str(line) for line in configuration.get("overrides") or []]
    overrides = " ".join(quote(line) for line in given if has_effect(line.lstrip("+~").partition("=")[0]))
    command = f"python -m latentrobust.{configuration.get('job_type', 'train')} {overrides}".strip()
    versions = ", ".join(f"{name} {version}" for name, version in (description.get("versions") or {}).items())
    lines += [
        "## How it was made",
        "",
        f"- Data: {description.get('data') or 'not named'}; licence of the data: {licence}",
        f"- Command: `{command}`",
        f"- Seed: {configuration.get('seed')}",
        f"- Versions: {versions}",
        f"- SHA-256 of the weights: `{sha256_of(found.folder / WEIGHTS)}`",
        "",
    ]
    return "\n".join(lines)


def _what(found: Stored, description: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    shape = "×".join(map(str, description.get("image_shape") or ()))
    if found.kind == "model":
        images, classes = f"images {shape} in [0, 1]", f"{description.get('classes')} classes"
        if _of_pixels(found, metrics):
            return f"A network that gives each pixel of {images} one of {classes}. Accuracies are shares of pixels."
        return f"A classifier of {images} into {classes}."
    radius = description.get("radius") or metrics.get("radius", float("nan"))
    text = (
        f"A perturbation set: for each image {shape} in [0, 1], all images that a generator makes of it with an offset"
        f" of {_norm(description)} at most {radius:.4g}."
    )
    if (reason := judged(metrics)) is not None:
        text += f" **{reason}**"
    if "coverage/radius" in metrics and too_coarse(metrics):
        text += (
            f" It is too coarse to say which share of {_new(metrics)}perturbations it contains: contained would be"
            f" what is within {metrics['coverage/tolerance']:.2g} (mean squared error; by default twice what its"
            f" encoder is off), and they differ from the image itself by {metrics['quality/no_change']:.2g}."
        )
    elif "coverage/radius" in metrics:
        images = f"{_new(metrics) or 'test '}images"
        text += (
            f" It contains {100 * metrics['coverage/radius']:.0f} %{_interval(metrics, 'coverage/radius')} of the"
            f" perturbations of {images}, to within the tolerance that its coverage states."
        )
    return text


def _new(metrics: Mapping[str, float]) -> str:
    """What test images are to a set, if that is known."""
    return "unseen " if metrics.get("seen/set") == 0 else ""


def _norm(description: Mapping[str, Any]) -> str:
    """Of the set's ball, in words; CVAEs have no other than ℓ2."""
    sign = SIGNS.get(description.get("norm", "l2" if description.get("kind") == "cvae" else ""), "")
    return f"{sign} norm".strip()


def _needs_label(description: Mapping[str, Any]) -> bool:
    """Whether a set is conditioned on classes: VAE-GANs are, and flows that were given some."""
    arguments = (description.get("network") or {}).get("arguments") or {}
    return description.get("kind") == "vae_gan" or (
        description.get("kind") == "flow" and bool(arguments.get("classes"))
    )


def _limits(found: Stored, description: Mapping[str, Any]) -> Sequence[str]:
    """What does not follow from a set or a model."""
    limits = LIMITS[found.kind]
    if found.kind == "perturbation_set" and description.get("kind") == "flow" and not description.get("latent_norms"):
        return (OF_IMAGES, *limits[1:])
    return limits


def _measured_on(found: Stored, metrics: Mapping[str, float]) -> str:
    """What the figures are of."""
    is_set = found.kind != "model"
    share = metrics.get("seen/set" if is_set else f"{found.prefix}seen/model")
    was = f", of which {share:.0%} were also learned from or selected on" if share else ""
    if share == 0:
        was = ", which nothing was learned from"
    has_pairs = is_set and any(name.startswith("quality/") for name in metrics)
    images = "pairs" if has_pairs and not share else "images"
    return f"On test {images}{was}; in brackets, where there are some, 95 % intervals."


def _of_pixels(found: Stored, metrics: Mapping[str, float]) -> bool:
    """Whether a model gives maps."""
    return f"{found.prefix}miou/clean" in metrics


Row = tuple[str, str, str]  # what was measured, its value, and what it means where that is not in the name


def _of_set(metrics: Mapping[str, float]) -> list[Row]:
    rows = [
        (title, f"{metrics[f'quality/{name}']:.4g}", meaning)
        for name, (title, meaning) in ROWS.items()
        if f"quality/{name}" in metrics
    ]
    rows += [(name, f"{metrics[name]:.4g}", meaning) for name, meaning in OF_FLOWS.items() if name in metrics]
    if "coverage/tolerance" not in metrics or too_coarse(metrics):
        return rows
    meaning = "Squared error within which a perturbation counts as contained."
    rows.append(("coverage/tolerance", f"{metrics['coverage/tolerance']:.4g}", meaning))
    shares = [name for name in _shares(metrics) if name.startswith("coverage/")]
    return [*rows, *((name, f"{100 * metrics[name]:.1f} %{_interval(metrics, name)}", "") for name in shares)]


def _of_model(found: Stored, metrics: Mapping[str, float], configuration: Mapping[str, Any]) -> list[Row]:
    own = {name.removeprefix(found.prefix): value for name, value in metrics.items() if name.startswith(found.prefix)}
    meanings = {
        "accuracy/clean": "Images as they are",
        "accuracy/perturbed": "The data's own perturbed images",
        "miou/clean": "Mean intersection over union, images as they are",
        "miou/perturbed": "Mean intersection over union, the data's own perturbed images",
        "accuracy_known/clean": "Pixels of materials that are told apart, images as they are",
        "accuracy_known/perturbed": "Pixels of materials that are told apart, the data's own perturbed images",
        "robust": "Right after these attacks",
        "smoothed/clean": "The smoothed model: images as they are (an abstention counts as wrong)",
        "smoothed/robust": "The smoothed model: most votes are right after a search (abstentions are not counted)",
        "certified": "The smoothed model: right, and certified",
        "certified_image": "The smoothed model: pixels that are right and certified, all of an image at once",
    }
    if "miou/clean" in own:
        meanings["certified"] = "The smoothed model: pixels that are right and certified, each on its own"
    radii = {is_robust: _radii(found.run, configuration, metrics, is_robust) for is_robust in (False, True)}
    rows = []
    for name in _shares(own):
        part, _, last = name.rpartition("/")
        text = meanings.get(part) or meanings.get(name, "")
        named = radii[part == "robust"]
        text += f" within ε = {named[last]:.4g}" if part in meanings and last in named else ""
        meaning = f"{text}." if text else ""
        if name in meanings or part in meanings or part.startswith("accuracy"):
            rows.append((name, f"{100 * own[name]:.1f} %{_interval(own, name)}", meaning))
    return rows


def _how(found: Stored, metrics: Mapping[str, float], configuration: Mapping[str, Any]) -> list[str]:
    """Sentences on the attacks, the smoothed model and the set, as far as there were any."""
    evaluation = configuration.get("evaluation") or {}
    number = {part: metrics.get(f"{found.prefix}{part}/examples", 0) for part in ("robust", "certified")}
    said = []
    if number["robust"]:
        asked = (evaluation.get("robust") or {}).get("attacks")
        attacks = (
            {name: attack for name, attack in asked.items() if attack is not None} if isinstance(asked, dict) else {}
        )
        names = " and ".join(attacks)
        said.append(f"Attacked{f' with {names}' if names else ''}: {number['robust']:.0f} images.")
        if attacks and all(str(attack.get("_target_")).endswith(".PGD") for attack in attacks.values()):
            said.append("PGD alone often overstates robustness, on learned sets by much.")
    if number["certified"]:
        certify, sigma = evaluation.get("certify") or {}, metrics.get(f"{found.prefix}smoothed/sigma", math.nan)
        said.append(
            f"Smoothed with noise of σ = {sigma:.4g} in the latents, at most {certify.get('n')} draws per image, each"
            f" certificate wrong with probability {certify.get('alpha')} at most: {number['certified']:.0f} images."
        )
        if f"{found.prefix}miou/clean" in metrics:
            said.append(
                "A certificate is of one pixel, so that of the many of an image some may be wrong; “all of an image at"
                " once” (`certified_image`), where it was measured, holds for all certified pixels together."
            )
    folder = _set_of(found.run, configuration)
    if said and folder is not None:
        said.append(f"Over the perturbation set whose weights have the SHA-256 `{sha256_of(folder / WEIGHTS)}`.")
    return said


def _set_of(run: Path, configuration: Mapping[str, Any]) -> Path | None:
    """The folder of the set that a run measured with, where it still lies there."""
    place = (configuration.get("perturbation_set") or {}).get("path")
    folders = [folder / "perturbation_set" for folder in (run, *([Path(place)] if place else []))]
    return next((folder for folder in folders if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()), None)


def _radii(
    run: Path, configuration: Mapping[str, Any], metrics: Mapping[str, float], of_attacks: bool
) -> dict[str, float]:
    """What radii by name are in that set; empty for certificates around ℓ∞ balls, whose radii are others."""
    folder = _set_of(run, configuration)
    # An exact set is its configuration alone.
    description: Any = (configuration.get("perturbation_set") or {}) if folder is None else read_json(folder / CONFIG)
    norm = description.get("norm", None if folder is None else "l2")
    if norm != "l2" and not of_attacks:
        return {}
    radii = dict(description.get("latent_norms") or {})
    if isinstance(full := metrics.get("radius", description.get("radius")), int | float):
        radii["full"] = float(full)
    return radii


def _shares(metrics: Mapping[str, float]) -> list[str]:
    """Shares by name; those at radii by number repeat others."""
    ends = ("/low", "/high")
    return [name for name in metrics if is_share(name) and "eps=" not in name and not name.endswith(ends)]


def _interval(metrics: Mapping[str, float], name: str) -> str:
    """The 95 % interval behind a share: the stored one, or Wilson's of as many images as there were; of maps none."""
    low, high = (metrics.get(f"{name}/{end}") for end in ("low", "high"))
    if low is None or high is None:
        measured = name.partition("/")[0]
        count = metrics.get(f"{'certified' if measured == 'smoothed' else measured}/examples")
        if not count or "miou/clean" in metrics:
            return ""
        count = metrics.get(f"{'certified' if measured == 'smoothed' else measured}/groups", count)
        low, high = proportion_confint(metrics[name] * count, count, method="wilson")
    return f" [{100 * low:.0f}, {100 * high:.0f}]"


def _usage(kind: Kind, needs_label: bool) -> str:
    if kind == "model":
        return 'import latentrobust as lr\nmodel = lr.load_model("hub:OWNER/NAME")   # images in [0, 1] to logits'
    return usage("hub:OWNER/NAME", needs_label)
