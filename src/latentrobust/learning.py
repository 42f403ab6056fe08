"""Learn a perturbation set in plain Python: `latentrobust.learn`, the same work as ``python -m latentrobust.train``."""

from __future__ import annotations

import copy
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobRuntime
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from pytorch_lightning.utilities.seed import isolate_rng
from torch import nn

from latentrobust.arguments import Count, PositiveShare, Seed, validated
from latentrobust.configuration import resolved
from latentrobust.data.module import PairModule
from latentrobust.data.pairs.given import GivenPairs
from latentrobust.data.pairs.table import Pairs
from latentrobust.errors import InputError, collecting, one_line
from latentrobust.files import quoted
from latentrobust.measure import check_evaluation
from latentrobust.overrides import composed
from latentrobust.perturbation_sets import PerturbationSet
from latentrobust.preflight import check_trainer
from latentrobust.processes import together
from latentrobust.run_folder import run_folder
from latentrobust.session import run_trainer, session
from latentrobust.sizes import take_sizes
from latentrobust.stages import learn_set
from latentrobust.values import check_values

Kind = Literal["cvae", "flow"]
HAS_A_NETWORK = re.compile(r"\+?experiment=")


BATCH_SIZE = 64


@validated
def learn(
    pairs: Pairs | PairModule,
    kind: Kind = "cvae",
    *,
    network: str | nn.Module = "auto",
    epochs: Count = 100,
    batch_size: Count | None = None,
    validation: Count | PositiveShare = 0.1,
    test: Count | PositiveShare = 0.2,
    device: Literal["auto", "cpu", "gpu"] = "auto",
    seed: Seed = 0,
    measure: bool = True,
    progress: bool = True,
    overrides: Sequence[str] = (),
) -> PerturbationSet:
    """Learn a perturbation set from pairs, and measure it on pairs that it has not seen.

    This is what ``python -m latentrobust.train data=pairs`` does, with the same defaults, in a folder that is removed
    at the end: the same pairs, options and seed give the same weights. Random generators are as before afterwards, and
    neither autocast nor another default type of whoever calls has a part in it.

    Args:
        pairs: from `latentrobust.pairs` or `latentrobust.read_pairs`, or any of the package's data modules.
        kind: a conditional VAE, or a normalizing flow.
        network: ``auto`` chooses by the images' size and colour; or a file's name in ``conf/learner/network``; or a
            network of one's own: a `CVAE`, or a `FlowNetwork`, for these images, of which a copy is trained from the
            weights that it has.
        epochs: passes over the training pairs; schedules stretch to them.
        batch_size: pairs per step, fewer where there are fewer training pairs; None for 64, or the data module's own.
        validation: groups to select the best epoch and the radius on, a number or a share; of `Pairs` without splits.
        test: groups to measure on, the same.
        device: ``auto`` takes a CUDA GPU where there is one.
        seed: of everything random.
        measure: whether to measure quality on the test pairs: without it the set's ``quality`` is empty.
        progress: whether to show a bar.
        overrides: further options of the command, such as ``"learner.optimizer.lr=1e-3"``, but none of the data.

    Returns:
        The set, frozen, on the CPU; ``latent_norms`` and ``quality`` say how it is, and ``save`` writes it to a folder.

    Raises:
        InputError: for pairs, networks or options that do not fit, before any work.

    Examples:
        >>> import torch, latentrobust as lr
        >>> x = torch.rand(40, 1, 8, 8)
        >>> pairs = lr.pairs(x, (x + 0.2).clamp(max=1), kind=["brighter"] * 40)
        >>> s = lr.learn(pairs, network="mnist_fc", epochs=1, measure=False, progress=False)
        >>> s.image_shape, s.latent_norms["max"] > 0
        ((1, 8, 8), True)
    """
    _refuse_options_of_data(pairs, batch_size, overrides)
    data: PairModule = (
        GivenPairs(pairs, None, batch_size or BATCH_SIZE, None, validation, test, seed=seed)
        if isinstance(pairs, Pairs)
        else pairs
    )
    own = _copied(network) if isinstance(network, nn.Module) else None
    if own is None and network != "auto":
        chosen = [f"learner/network={network}"]
    elif kind == "flow" and not any(map(HAS_A_NETWORK.match, overrides)):
        chosen = ["learner/network=auto_flow"]
    else:
        chosen = []  # the learner's own: auto, or what an experiment or a learner among the overrides chooses
    of_kind = []
    if kind == "flow":  # without pairs there is a density to learn and to measure
        of_kind = ["learner.radius=max"] if data.has_pairs else ["evaluation=flow"]
    options = [
        "data=pairs", "data.root=given", f"data.name={quoted(data.name)}", f"data.batch_size={data.batch_size}",
        f"learner={kind}", *chosen, f"trainer.max_epochs={epochs}", f"trainer.accelerator={device}",
        f"seed={seed}", "logger=none", "print_config=false", *([] if progress else ["callbacks.progress=null"]),
        *of_kind,
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="latentrobust-") as folder, _as_before():
        try:
            cfg = composed("train", [*options, *overrides, f"paths.output_dir={quoted(folder)}"])
        except Exception as error:  # Hydra raises what comes to hand
            raise InputError(f"learn: {error}") from None
        cfg.overrides = list(overrides)
        check_values(cfg)
        check_trainer(cfg)
        configuration = resolved(cfg)
        with (
            collecting() as found,
            run_folder(Path(folder), configuration) as own_folder,
            session(cfg, configuration, data) as shared,
        ):
            if own is None:
                take_sizes(cfg, data)
            try:
                learner: Any = instantiate(cfg.learner, _convert_="all", **({} if own is None else {"network": own}))
            except InstantiationException as error:
                raise InputError(f"learn: {error.__cause__ or error}") from None
            learner.check_data(data)
            if measure:
                check_evaluation(cfg, None, [], data, learner.network)
            own_folder.begin()
            perturbations, made = learn_set(cfg, shared, own_folder, own)
            for part, given in (("quality", {}), ("density", {"history": made.history})) if measure else ():
                if cfg.evaluation.get(part) is not None:
                    measuring: Any = instantiate(
                        cfg.evaluation[part], perturbations=perturbations, **given, _convert_="all"
                    )
                    trainer = shared.trainer(cfg, test=True)
                    run_trainer(trainer, partial(trainer.test, measuring, datamodule=data, verbose=False))
                    perturbations.quality |= measuring.metrics
                    perturbations.cpu()
            perturbations.warnings = tuple(found)
    return perturbations


def _copied(network: nn.Module) -> nn.Module:
    try:
        with torch.inference_mode(False):
            return copy.deepcopy(network)
    except (RuntimeError, TypeError) as error:  # of tensors that were computed, as weight norm keeps them
        raise InputError(f"learn: the network cannot be copied ({one_line(error)}): give a new one") from None


@contextmanager
def _as_before() -> Iterator[None]:
    """Random generators, Lightning's variables, filters of warnings and Hydra stay as whoever calls has them.

    So does it where there was no group of processes. Autocast, inference mode and another default type are left for it:
    autocast keeps copies of weights until its outermost block ends, which training would go on from.
    """
    variables = {name: os.environ.get(name) for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")}
    hydra, job = GlobalHydra.instance().hydra, JobRuntime.instance().conf.copy()
    alone, default = not together(), torch.get_default_dtype()
    GlobalHydra.instance().clear()
    try:
        torch.set_default_dtype(torch.float32)
        with ExitStack() as outside:
            outside.enter_context(isolate_rng(torch.cuda.is_initialized()))
            outside.enter_context(warnings.catch_warnings())
            outside.enter_context(torch.inference_mode(False))
            outside.enter_context(torch.enable_grad())
            for device in ("cpu", "cuda"):
                outside.enter_context(torch.autocast(device, enabled=False, cache_enabled=False))
            yield
    finally:
        torch.set_default_dtype(default)
        GlobalHydra.instance().hydra, JobRuntime.instance().conf = hydra, job
        for name, value in variables.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        if alone and together():
            torch.distributed.destroy_process_group()


def _refuse_options_of_data(pairs: Pairs | PairModule, batch_size: int | None, overrides: Sequence[str]) -> None:
    """Refuse what would do nothing: the data is made already.

    Raises:
        InputError: naming the argument to give instead.
    """
    if batch_size is not None and not isinstance(pairs, Pairs):
        raise InputError(f"learn: batch_size={batch_size} is of pairs, and {pairs} has its own")
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if key == "data" or key.startswith(("data.", "data/", "data@")):
            raise InputError(
                f"learn: {override} does nothing, for the data is given: batch_size, validation and test are arguments,"
                " and pairs.as_data(…) takes everything else"
            )
