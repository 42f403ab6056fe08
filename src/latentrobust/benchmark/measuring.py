"""How speed is measured: two ways of doing the same, in turns."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from latentrobust.networks import classifiers, cvae
from latentrobust.perturbation_sets import CVAESet

Row = dict[str, Any]
# Name, builder, and batch on a CPU and on a GPU, of the classifiers behind the CIFAR-size residual set; random weights.
CLASSIFIERS: tuple[tuple[str, dict[str, Any], dict[str, int]], ...] = (
    ("wrn_28_10", {"name": "wide_resnet", "depth": 28, "width": 10}, {"cpu": 8, "cuda": 128}),
    ("preactresnet18", {"name": "preactresnet18"}, {"cpu": 16, "cuda": 128}),
)
RADIUS = 28.0


def in_turns(
    ours: Callable[[], int], plain: Callable[[], int], seconds: float, *, least: int = 2
) -> tuple[float, float]:
    """Samples a second of both, the median of at least ``least`` runs each, after one to warm up.

    Each run does some samples and returns how many. They take turns, so that a machine that slows down slows both.
    """
    rates: tuple[list[float], list[float]] = ([], [])
    for run in (ours, plain):
        run()
    started = time.perf_counter()
    while len(rates[1]) < least or time.perf_counter() - started < seconds:
        for found, run in zip(rates, (ours, plain), strict=True):
            before = time.perf_counter()
            count = run()
            found.append(count / (time.perf_counter() - before))
    return median(rates[0]), median(rates[1])


def row(loop: str, shape: list[int], device: torch.device, rates: tuple[float, float], bf16: bool = False) -> Row:
    """A line of the table, as in the JSON file."""
    on_gpu = device.type == "cuda"
    ours, plain = rates
    # ru_maxrss is in KiB on Linux and in bytes on macOS.
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return {
        "loop": loop,
        "shape": shape,
        "dtype": "bfloat16 (plain: float32)" if bf16 else "float32",
        "device": torch.cuda.get_device_name(device) if on_gpu else f"cpu, {torch.get_num_threads()} threads",
        "samples_per_second": round(ours, 2),
        "plain_samples_per_second": round(plain, 2),
        "ratio": round(ours / plain, 2),
        "peak_memory_mb": round(torch.cuda.max_memory_allocated(device) / 2**20 if on_gpu else resident, 1),
    }


def done(device: torch.device, samples: int) -> int:
    """The number of samples, once the device has finished them."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return samples


def channels_last(*modules: nn.Module) -> None:
    """Lay weights out as convolutions like them best; images follow."""
    for module in modules:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def precision(device: torch.device, bf16: bool) -> torch.autocast:
    """bfloat16 autocast, or none."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


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
        torch.cuda.reset_peak_memory_stats(device)
        made.step()
        peak = torch.cuda.max_memory_allocated(device) / 2**20
        return Memory(peak - before, peak)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_resident, (make, (device, *arguments)))


def _resident(make: Callable[..., Stepping], arguments: tuple[Any, ...]) -> Memory:
    made = make(*arguments)
    before = _high_water()
    made.step()
    return Memory(_high_water() - before, _high_water())


def _high_water() -> float:
    """The largest resident size of this process so far, in MiB."""
    status = Path("/proc/self/status")
    if status.is_file():  # on Linux ru_maxrss is inherited from whoever started the process
        return next(float(line.split()[1]) for line in status.read_text().splitlines() if line[:6] == "VmHWM:") / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
