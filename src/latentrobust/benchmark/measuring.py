"""How speed is measured: ways of doing the same, in turns, beside what the device reaches at most."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from latentrobust.graphs import unrecorded
from latentrobust.networks import classifiers, cvae
from latentrobust.perturbation_sets import CVAESet

Row = dict[str, Any]
# Name, builder, and batch on a CPU and on a GPU, of the classifiers behind the CIFAR-size residual set; random weights.
CLASSIFIERS: tuple[tuple[str, dict[str, Any], dict[str, int]], ...] = (
    ("wrn_28_10", {"name": "wide_resnet", "depth": 28, "width": 10}, {"cpu": 8, "cuda": 128}),
    ("preactresnet18", {"name": "preactresnet18"}, {"cpu": 16, "cuda": 128}),
)
RADIUS = 28.0
QUICK = 0.05  # seconds that a product may take for the next larger one to be tried


@dataclass(frozen=True)
class Conditions:
    """Under which all loops of one run are measured.

    Args:
        device: where.
        seconds: for each row, about.
        bf16: our side under bfloat16 autocast.
        compiled: our networks through ``torch.compile`` where a loop can take it.
        batch: images at once, instead of what the loop takes.
    """

    device: torch.device
    seconds: float
    bf16: bool = False
    compiled: bool = False
    batch: int | None = None

    @cached_property
    def peaks(self) -> Peaks:
        """What the device reaches at most, measured once a run in the precision of our side."""
        return peaks(self.device, torch.bfloat16 if self.bf16 else torch.float32)

    def autocast(self) -> torch.autocast:
        """bfloat16 autocast, or none."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def optimized(self, module: nn.Module) -> nn.Module:
        """The module, compiled if that was asked for."""
        return cast("nn.Module", torch.compile(module)) if self.compiled else module

    def size(self, usual: dict[str, int], step: Callable[[int], Callable[[], int]], runs: float) -> int:
        """How many images at once: what was asked for, else the usual number where the row's time allows it.

        A GPU takes the usual number, for which a single image takes nearly as long.

        Args:
            usual: by type of device.
            step: makes our step of so many images.
            runs: how many of our steps take as long as the whole row.
        """
        if self.batch is not None or self.device.type == "cuda":
            return self.batch or usual[self.device.type]
        one = step(1)
        one()
        before = time.perf_counter()
        one()
        affordable = self.seconds / (runs * max(time.perf_counter() - before, 1e-9))
        return max(1, min(usual[self.device.type], int(affordable)))


class Peaks(NamedTuple):
    """The two floors under every loop: floating-point operations a second, and bytes a second that are copied."""

    operations: float
    copied: float


def peaks(device: torch.device, dtype: torch.dtype, repetitions: int = 5) -> Peaks:
    """The best of some products of two square matrices, and of some copies (a byte read and written counts twice).

    Of 2,048 rows, 8,192 on a GPU; fewer where a product of as many would take long, as where a precision is emulated.
    A GPU's products of float32 are in TF32 where its convolutions are.
    """
    if device.type == "cuda":
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
        try:
            return _peaks(device, dtype, repetitions)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
    return _peaks(device, dtype, repetitions)


def _peaks(device: torch.device, dtype: torch.dtype, repetitions: int) -> Peaks:
    side, most = 256, 2048 if device.type == "cpu" else 8192
    while side < most and _seconds(partial(torch.mm, *_matrices(side, device, dtype)), device) < QUICK:
        side *= 2
    a, b = _matrices(side, device, dtype)
    found = 0.0, 0.0
    for _ in range(repetitions):
        product, copy = (_seconds(run, device) for run in (partial(torch.mm, a, b), a.clone))
        found = max(found[0], 2 * side**3 / product), max(found[1], 2 * a.nbytes / copy)
    return Peaks(*found)


def _matrices(side: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.rand(2, side, side, device=device).to(dtype)


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    before = time.perf_counter()
    run()
    done(device, 0)
    return time.perf_counter() - before


def in_turns(seconds: float, *runs: Callable[[], int], least: int = 2) -> list[list[float]]:
    """Samples per second of each in at least ``least`` runs, after one to warm up.

    Each run does some samples and returns how many. They take turns, so that a machine that slows down slows all.
    """
    rates: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    started = time.perf_counter()
    while len(rates[-1]) < least or time.perf_counter() - started < seconds:
        for found, run in zip(rates, runs, strict=True):
            before = time.perf_counter()
            count = run()
            found.append(count / (time.perf_counter() - before))
    return rates


def compared(
    on: Conditions,
    loop: str,
    shape: list[int],
    ours: Callable[[], int],
    plain: Callable[[], int],
    floor: Callable[[], int] | None = None,
    *,
    counted: bool = True,
    unit: str = "images",
) -> Row:
    """Measure a row of the table: ours, the plain loop and the floor in turns.

    Args:
        on: conditions.
        loop: name.
        shape: of what a step takes.
        ours: does some samples and returns how many.
        plain: the same as the published code does it.
        floor: what cannot be left out, such as the networks alone; none where there is no such thing.
        counted: whether our floating-point operations are counted (matrix products and convolutions); never those of
            compiled networks, which counting would keep from being compiled.
        unit: what the samples are.
    """
    print(f"  {loop}", flush=True)
    operations = 0.0
    if counted and not on.compiled:
        with unrecorded(), FlopCounterMode(display=False) as counter:
            samples = ours()
        operations = counter.get_total_flops() / samples
    _forget_the_peak(on.device)
    ours()
    memory = _peak(on.device)
    runs = in_turns(on.seconds, ours, plain, *([] if floor is None else [floor]))
    rates = [median(each) for each in runs]
    found = row(loop, shape, on, rates[0], rates[1], memory, unit=unit)
    found |= {"runs": len(runs[0])} | {
        f"{side}samples_per_second_between": [_six(min(each)), _six(max(each))]
        for side, each in zip(("", "plain_"), runs, strict=False)
    }
    if floor is not None:
        found |= {"floor_samples_per_second": _six(rates[2]), "share_of_floor": round(rates[0] / rates[2], 3)}
    if operations:
        peak = on.peaks
        found |= {
            "gflop_per_sample": float(f"{operations / 1e9:.4g}"),
            "share_of_peak": round(rates[0] * operations / peak.operations, 3),
            "peak_gflops": round(peak.operations / 1e9, 1),
            "copied_gb_per_second": round(peak.copied / 1e9, 1),
        }
    return found


def row(
    loop: str, shape: list[int], on: Conditions, ours: float, plain: float, memory: float, *, unit: str = "images"
) -> Row:
    """A line of the table, as in the JSON file; rates in samples per second, memory at its peak in MiB."""
    device = on.device
    on_gpu = device.type == "cuda"
    return {
        "loop": loop,
        "shape": shape,
        "unit": unit,
        "dtype": "bfloat16 (plain: float32)" if on.bf16 else "float32",
        "device": torch.cuda.get_device_name(device) if on_gpu else f"cpu, {torch.get_num_threads()} threads",
        "samples_per_second": _six(ours),
        "plain_samples_per_second": _six(plain),
        "ratio": round(ours / plain, 2),
        "peak_memory_mb": round(memory, 1),
        "compiled": on.compiled,
        "seconds_asked": on.seconds,
        "torch": torch.__version__,
    }


def _six(rate: float) -> float:
    """Six digits."""
    return float(f"{rate:.6g}")


def done(device: torch.device, samples: int) -> int:
    """The number of samples, once the device has finished them."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return samples


def cifar(arguments: dict[str, Any], device: torch.device) -> tuple[nn.Module, CVAESet]:
    """A classifier and the CIFAR-size residual set, with the same random weights in every call."""
    torch.manual_seed(0)
    model = classifiers.build(**arguments).to(device)
    perturbations = CVAESet(cvae.build("resnet"), "gaussian", RADIUS).to(device).eval()
    return model, perturbations


class Stepping(Protocol):
    """Something whose step is measured."""

    def step(self) -> int:
        """One step."""


class Memory(NamedTuple):
    """Peak memory in MiB: above what there was before the first step, and in all."""

    above_start: float
    whole: float


def step_memory(make: Callable[..., Stepping], device: torch.device, *arguments: Any) -> Memory:
    """Memory of the first step of ``make(device, *arguments)``: allocated on a GPU; on a CPU, of an own process."""
    if device.type == "cuda":
        made = make(device, *arguments)
        before = torch.cuda.memory_allocated(device) / 2**20
        _forget_the_peak(device)
        made.step()
        return Memory(_peak(device) - before, _peak(device))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_resident, (make, (device, *arguments)))


def _resident(make: Callable[..., Stepping], arguments: tuple[Any, ...]) -> Memory:
    made = make(*arguments)
    cpu = torch.device("cpu")
    _forget_the_peak(cpu)  # what making it took
    before = _peak(cpu)
    made.step()
    return Memory(_peak(cpu) - before, _peak(cpu))


def _forget_the_peak(device: torch.device) -> None:
    """Let `_peak` be that of what follows, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # Linux alone, and not in every container
        Path("/proc/self/clear_refs").write_text("5")


def _peak(device: torch.device) -> float:
    """The most memory in MiB: allocated on a GPU, resident of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.is_file():  # on Linux ru_maxrss is inherited from whoever started the process
        return next(float(line.split()[1]) for line in status.read_text().splitlines() if line[:6] == "VmHWM:") / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
