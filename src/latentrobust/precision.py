"""Which parts of a network may run in half precision, and what widens their results again."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` itself where it is float32 or float64, else in float32: what autocast made narrow is widened again."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def without_autocast(x: Tensor) -> torch.autocast:
    """A context for what must not run in half precision, on the device of ``x``."""
    return torch.autocast(x.device.type, enabled=False)


def bfloat16_is_slow(device: torch.device) -> str | None:
    """Why bfloat16 would only cost time on a device, as far as that can be asked; ``None`` where it should pay."""
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
        return None if able else f"{torch.cuda.get_device_name(device)} has no bfloat16 units"
    told = torch.cpu.get_capabilities() if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities") else {}
    if not str(told.get("architecture", "")).startswith("x86") or told.get("avx512_bf16") or told.get("amx_bf16"):
        return None
    return "this CPU has neither AVX512-BF16 nor AMX, so bfloat16 is emulated and slower than float32"
