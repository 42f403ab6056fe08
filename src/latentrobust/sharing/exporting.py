"""Programs for those who run models elsewhere: a set's generator, or a model, by ``torch.export`` or ONNX."""

from __future__ import annotations

import copy
import importlib.util
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentrobust.arguments import Count, validated
from latentrobust.errors import InputError, in_short
from latentrobust.perturbation_sets.base import PerturbationSet
from latentrobust.perturbation_sets.flow import FlowSet
from latentrobust.robustness.criteria import answer

ENDINGS = (".pt2", ".onnx")
ONNX = ("onnx", "onnxscript", "onnxruntime")
CLOSE = 1e-4  # largest difference of the exported program's answer, relative to the largest number in it


class Generator(nn.Module):
    """A set as one function: images ``x [B, *image]`` and offsets ``u [B, *ball]`` to images ``[B, *image]``."""

    def __init__(self, perturbations: PerturbationSet) -> None:
        super().__init__()
        self.perturbations = perturbations

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        """g(u, x), one offset an image."""
        return self.perturbations.condition(x).decode(u.unsqueeze(0))[0]


@validated
def export(what: PerturbationSet | nn.Module, path: str | Path, *, image_shape: Sequence[Count] | None = None) -> float:
    """Write a set's generator, or a model, as a program that needs neither this package nor its classes.

    Flows cannot be exported: they look at their weights' values while they compute.
    The program is loaded again and run beside the original on random images before the file appears.

    Args:
        what: a set, which becomes `Generator`; or a model, from images ``[B, *image]`` in [0, 1] to logits, such as the
            base model of a smoothed one.
        path: to write; ``.pt2`` for ``torch.export``, ``.onnx`` for ONNX. Batches may have any size.
        image_shape: of one image; a set knows it.

    Returns:
        The largest difference between the program's answer and the original's.

    Raises:
        InputError: for another ending, a missing shape, a flow, a set that needs labels, a function, or what cannot be
            exported.

    Examples:
        >>> import tempfile, torch, latentrobust as lr
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2)).eval()
        >>> with tempfile.TemporaryDirectory() as folder:  # ".onnx" writes ONNX
        ...     export(model, f"{folder}/model.pt2", image_shape=(1, 4, 4)) < 1e-5
        True
    """
    path = Path(path)
    if path.suffix not in ENDINGS:
        raise InputError(f"{path} must end in {' or '.join(ENDINGS)}")
    if path.suffix == ".onnx" and (missing := [name for name in ONNX if importlib.util.find_spec(name) is None]):
        raise InputError(f"ONNX needs {', '.join(missing)}: pip install 'latentrobust[onnx]'")
    if not isinstance(what, nn.Module):
        raise InputError(f"export takes a set or a torch.nn.Module, got a {type(what).__name__}")
    what = copy.deepcopy(what).cpu().eval()  # the caller's stays where and as it is
    weights = [part for part in what.parameters() if part.dtype.is_floating_point]
    dtype = weights[0].dtype if weights else torch.float32
    if isinstance(what, PerturbationSet):
        if isinstance(what, FlowSet):
            raise InputError("flows cannot be exported: they look at their weights' values while they compute")
        if what.needs_label:
            raise InputError("a set that needs the true label has no generator of images alone")
        module: nn.Module = Generator(what)
        inputs = [torch.rand(3, *what.image_shape, dtype=dtype), 0.3 * torch.randn(3, *what.ball.shape, dtype=dtype)]
    else:
        if image_shape is None:
            raise InputError("export needs image_shape=(C, H, W) of a model")
        module, inputs = what, [torch.rand(3, *image_shape, dtype=dtype)]
    with torch.no_grad():
        expected = answer(module, inputs[0]) if module is what else module(*inputs)
    return _written(module, tuple(inputs), path, expected)


def _copies(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """For modules that normalise their input in place."""
    return tuple(value.clone() for value in inputs)


def _written(module: nn.Module, inputs: tuple[Tensor, ...], path: Path, expected: Tensor) -> float:
    batch = torch.export.Dim("batch", min=1)
    sizes = tuple({0: batch} for _ in inputs)
    partial = path.with_name(f".partial-{path.name}")
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch, about itself
            program = torch.export.export(module, _copies(inputs), dynamic_shapes=sizes)
            if path.suffix == ".onnx":
                logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # of packages that nobody needs here
                torch.onnx.export(program, (), str(partial), external_data=False, verbose=False)
                answers = [_by_onnx(partial, part) for part in (inputs, tuple(value[:1] for value in inputs))]
            else:
                torch.export.save(program, str(partial))
                again: Any = torch.export.load(str(partial)).module()
                answers = [again(*_copies(part)) for part in (inputs, tuple(value[:1] for value in inputs))]
        difference = max(
            float((found - part).abs().max()) for found, part in zip(answers, (expected, expected[:1]), strict=True)
        )
        if not difference <= CLOSE * max(float(expected.abs().max()), 1.0):
            raise InputError(f"the exported program answers otherwise (by {difference:.3g}), so it was not kept")
        partial.replace(path)
    except InputError:
        raise
    except Exception as error:  # of whatever the module does that cannot be exported
        raise InputError(f"this cannot be exported to {path.suffix}: {in_short(error, 300)}") from None
    finally:
        partial.unlink(missing_ok=True)
    return difference


def _by_onnx(path: Path, inputs: tuple[Tensor, ...]) -> Tensor:
    import onnxruntime  # noqa: PLC0415 - an extra

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    return torch.from_numpy(session.run(None, feed)[0])
