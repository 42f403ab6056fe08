"""Random numbers by key: example ``i`` gets the same draws in any batch, order, process or device.

A key is an int64 that stands for one stream of random bits, here the SplitMix64 sequence that starts at it (Steele,
Lea & Flood 2014, "Fast splittable pseudorandom number generators"). Keys are made from a seed and an example's index,
``fold_in`` derives new ones, and samplers turn keys of shape ``[*batch]`` into values of shape ``[*batch, *shape]``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latentrobust.errors import InputError


def _signed(value: int) -> int:
    """The int64 with the same 64 bits as ``value``."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


_WORD = (1 << 64) - 1
_GAMMA = _signed(0x9E3779B97F4A7C15)
_MIX1 = _signed(0xBF58476D1CE4E5B9)
_MIX2 = _signed(0x94D049BB133111EB)


def _shift_right(bits: Tensor, count: int) -> Tensor:
    # int64 shifts are arithmetic; the mask makes this one logical.
    return (bits >> count) & ((1 << (64 - count)) - 1)


def _mix(bits: Tensor) -> Tensor:
    """SplitMix64's finaliser: a bijection of 64-bit words in which each input bit flips about half the output bits."""
    bits = (bits ^ _shift_right(bits, 30)) * _MIX1
    bits = (bits ^ _shift_right(bits, 27)) * _MIX2
    return bits ^ _shift_right(bits, 31)


def _mixed(word: int) -> int:
    """`_mix` of one word, given and returned as 64 bits without a sign."""
    word = ((word ^ (word >> 30)) * _MIX1) & _WORD
    word = ((word ^ (word >> 27)) * _MIX2) & _WORD
    return word ^ (word >> 31)


def checked_keys(keys: Tensor, count: int) -> Tensor:
    """Somebody's keys as int64: of another type, the same numbers would be other streams.

    Raises:
        InputError: if there are not ``count`` whole numbers.
    """
    whole = isinstance(keys, Tensor) and not (keys.dtype.is_floating_point or keys.dtype == torch.bool)
    if not whole or keys.shape != (count,):
        got = f"{keys.dtype} {list(keys.shape)}" if isinstance(keys, Tensor) else f"a {type(keys).__name__}"
        raise InputError(f"keys must be whole numbers, one for each of {count} images; got {got}")
    return keys.to(torch.int64)


def fold_in(keys: Tensor, data: Tensor | int) -> Tensor:
    """Keys derived from ``keys`` and ``data`` (broadcast): different ``data`` give unrelated streams."""
    keys = keys.to(torch.int64)
    # A number stays on the host: as a tensor it would be copied to a GPU, which waits for all that was asked before.
    if isinstance(data, Tensor):
        return _mix(_mix(keys ^ _MIX2) + (data.to(keys.device, torch.int64) + 1) * _GAMMA)
    return _mix(_mix(keys ^ _MIX2) + _signed((int(data) + 1) * _GAMMA))


def example_keys(seed: int, index: Tensor, *context: int) -> Tensor:
    """Keys of the examples ``index [B]`` under ``seed`` and, say, an epoch: int64 ``[B]``, on the index's device."""
    word = seed & _WORD
    for part in context:
        word = _mixed(_mixed(word ^ (_MIX2 & _WORD)) + (part + 1) * _GAMMA & _WORD)
    return _mix((index.to(torch.int64) + 1) * _GAMMA + _signed(_mixed(word ^ (_MIX2 & _WORD))))


def fresh_keys(*batch: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu") -> Tensor:
    """Keys ``[*batch]`` drawn from a generator, or from PyTorch's global one."""
    where = generator.device if generator is not None else torch.device("cpu")
    drawn = torch.randint(-(1 << 63), (1 << 63) - 1, batch, generator=generator, device=where)
    return drawn.to(device)


def _bits(keys: Tensor, count: int) -> Tensor:
    """The first ``count`` 64-bit words of each stream: ``[*batch, count]``."""
    counter = torch.arange(1, count + 1, device=keys.device) * _GAMMA
    return _mix(keys[..., None] + counter)


def uniform(keys: Tensor, shape: tuple[int, ...] = (), dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform on [0, 1), exactly representable in ``dtype``: ``[*batch, *shape]``."""
    digits = 1 - round(math.log2(torch.finfo(dtype).eps))  # with more, the largest would round to 1
    bits = _shift_right(_bits(keys, math.prod(shape)), 64 - digits)
    return (bits.to(dtype) * 2.0**-digits).reshape(*keys.shape, *shape)


def normal(keys: Tensor, shape: tuple[int, ...] = (), dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal, by Box and Muller's transform of two 32-bit uniforms a word: ``[*batch, *shape]``."""
    if dtype in (torch.float16, torch.bfloat16):  # neither holds 32 bits, and float16 no 2^32
        return normal(keys, shape).to(dtype)
    count = math.prod(shape)
    bits = _bits(keys, (count + 1) // 2)
    # The half keeps the logarithm finite; in float32 the largest radius is 6.66 standard deviations.
    first = (_shift_right(bits, 32).to(dtype) + 0.5) * 2.0**-32
    second = (bits & 0xFFFFFFFF).to(dtype) * (2 * math.pi * 2.0**-32)
    length = first.log().mul(-2).clamp_min_(0).sqrt()
    values = torch.stack([length * second.cos(), length * second.sin()], -1).flatten(-2)
    return values[..., :count].reshape(*keys.shape, *shape)


def integers(keys: Tensor, low: int, high: int, shape: tuple[int, ...] = ()) -> Tensor:
    """Uniform integers ``low ≤ n < high``: int64 ``[*batch, *shape]``.

    Raises:
        ValueError: for an empty range, or one of more than 2³² numbers, which would not be uniform.
    """
    if not 0 < high - low <= 1 << 32:
        raise ValueError(f"random integers need a range of 1 to 2³² numbers, got {low} to {high}")
    count, words = high - low, _bits(keys, math.prod(shape))
    if count <= 1 << 31:
        place = (_shift_right(words, 33) * count) >> 31  # of 31 bits, so that the product cannot overflow
    else:  # 32 bits, or some numbers could never come; the product in two halves
        bits = _shift_right(words, 32)
        place = (bits * (count >> 16) + ((bits * (count & 0xFFFF)) >> 16)) >> 16
    return (low + place).reshape(*keys.shape, *shape)


def bits(keys: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
    """Fair coins, uint8 0 or 1: ``[*batch, *shape]``."""
    count = math.prod(shape)
    words = _bits(keys, (count + 63) // 64)
    # A word seen as eight bytes, and each byte as eight bits.
    octets = words.contiguous().view(torch.uint8)
    spread = (octets[..., None] >> torch.arange(8, dtype=torch.uint8, device=keys.device)) & 1
    return spread.flatten(keys.ndim)[..., :count].reshape(*keys.shape, *shape)


def permutation(seed: int, count: int, *context: int) -> Tensor:
    """A permutation of ``range(count)`` that depends on ``(seed, *context)`` alone: int64 ``[count]``, on the CPU."""
    keys = example_keys(seed, torch.arange(count), *context)
    return torch.argsort(keys, stable=True)
