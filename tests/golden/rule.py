"""How weights and inputs of the golden networks follow from names and shapes."""

import math
import zlib

import numpy as np
import torch


def filled(name, shape, all_names, gain):
    count = math.prod(shape)
    prefix, _, last = name.rpartition(".")
    wave_ = np.sin(0.1 * (np.arange(count) % 9973) + zlib.crc32(name.encode()) % 1000)
    if last == "running_var":
        value = 1 + 0.5 * np.abs(wave_)
    elif last == "weight" and f"{prefix}.running_mean" in all_names:
        value = 1 + 0.1 * wave_
    elif last == "weight" and len(shape) > 1:
        value = gain * wave_ / math.sqrt(count // shape[0])
    else:
        value = 0.1 * wave_
    return torch.from_numpy(value.reshape(shape).astype(np.float32))


def wave(shape, frequency, phase, centre=0.5):
    index = np.arange(math.prod(shape)).reshape(shape)
    return torch.from_numpy((centre + (centre or 1) * np.sin(frequency * index + phase)).astype(np.float32))


def filled_state(rows, gain):
    """A state dict for rows of (name, shape); what normalises inputs and counts batches stays as constructed."""
    names = [name for name, _ in rows]
    return {
        name: torch.tensor(1) if name.endswith("num_batches_tracked") else filled(name, tuple(shape), names, gain)
        for name, shape in rows
    }


def value(name, shape, names):
    """A tensor under the second rule, by which every tensor of the UNets is felt: float64."""
    generator, count, last = np.random.RandomState(zlib.crc32(name.encode())), math.prod(shape), name.rpartition(".")[2]
    drawn = generator.standard_normal(count).reshape(shape)
    if last == "num_batches_tracked":
        return np.array(1)
    if last == "running_mean":
        return 0.3 * drawn
    if last == "running_var":
        return 0.5 + np.abs(drawn)
    if last == "weight" and name.removesuffix(last) + "running_mean" in names:
        return 0.8 + 0.2 * np.abs(drawn)
    if last == "weight" and len(shape) > 1:
        return drawn * math.sqrt(1.5 / (count // shape[0]))
    return 0.1 * drawn


def felt_state(rows):
    """A state dict under the second rule for rows of (name, shape)."""
    names = [name for name, _ in rows]
    made = {name: torch.from_numpy(np.asarray(value(name, tuple(shape), names))) for name, shape in rows}
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in made.items()}


def model_state(model):
    """The state dict that a golden model was run with: under the first rule, or the second where it says so."""
    if model.get("fill") == "felt":
        return felt_state(model["state_dict"])
    return filled_state(model["state_dict"], model["gain"])
