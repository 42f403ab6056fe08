"""CUDA graphs: hundreds of small kernels that are recorded once and then started together.

The steps of small networks are kernels of microseconds, and a GPU waits for the processor that starts them one by one.
What is recorded here is a function of tensors. Its kernels read inputs at fixed addresses and weights where they lie,
so that an optimiser that writes in place is followed. Results are those of the kernels themselves.

Recording needs a function that never waits for the GPU (no ``float(tensor)``, no choice by values), and the same
shapes again. Where a function cannot be recorded, that is said once, and it runs as it is.
"""

from __future__ import annotations

import gc
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Generic, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

WARM_UP = 3  # runs before recording: libraries choose their algorithms, and allocate what they keep
KEPT = 2  # recordings of one function, each with memory of its own; beyond them the oldest is dropped
RARE = 8  # calls with one shape up to which a pass is not worth its recording

Key = Hashable
Result = TypeVar("Result")


_records: ContextVar[bool] = ContextVar("_records", default=True)


@contextmanager
def unrecorded() -> Iterator[None]:
    """Nothing is recorded or replayed inside, so that whoever counts operations sees them."""
    token = _records.set(False)
    try:
        yield
    finally:
        _records.reset(token)


def recording() -> bool:
    """Whether kernels are being recorded now, so that nothing may wait for the GPU."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


class GraphWarning(UserWarning):
    """A function could not be recorded. The message says why."""


class Recording(NamedTuple, Generic[Result]):
    """A function's kernels, the tensors that they read and those that they write."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    result: Result

    def replay(self, inputs: Sequence[Tensor]) -> Result:
        """Run the kernels on other inputs; the result is written over by the next replay."""
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        self.graph.replay()
        return self.result


class Recorder(Generic[Result]):
    """Recordings of one function, one for each shape of its inputs.

    Args:
        function: tensors to tensors, in any nesting.
        modules: whose weights it reads. Their buffers are put back after the runs before recording, so that running
            statistics count a batch once.
    """

    def __init__(self, function: Callable[..., Result], *modules: nn.Module) -> None:
        self.function, self.modules = function, modules
        self._recordings: dict[Key, Recording[Result]] = {}
        self._failed = False

    def __call__(self, inputs: Sequence[Tensor]) -> Recording[Result] | None:
        """The recording for such inputs, made now if there is none; None where there cannot be one.

        Args:
            inputs: on one device, none of which is differentiated.
        """
        if self._failed or not _records.get() or any(value.device.type != "cuda" for value in inputs):
            return None
        key = (_signature(inputs), self._weights(), torch.is_autocast_enabled("cuda"))
        if key not in self._recordings:
            try:
                with _recovering(inputs[0].device):
                    made = self._record([value.detach().clone() for value in inputs])
            except RuntimeError as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                self._failed = True
                _warn(error)
                return None
            while len(self._recordings) >= KEPT:
                self._recordings.pop(next(iter(self._recordings)))
            self._recordings[key] = made
        return self._recordings[key]

    def _weights(self) -> Key:
        """Where weights lie, and whether they are trained: another place, or another way, is another recording."""
        return tuple(
            (weight.data_ptr(), weight.requires_grad)
            for module in self.modules
            for weight in (*module.parameters(), *module.buffers())
        ) + tuple(part.training for module in self.modules for part in module.modules())

    def _record(self, inputs: list[Tensor]) -> Recording[Result]:
        device = inputs[0].device
        beside = torch.cuda.Stream(device)
        with _as_they_were(self.modules, device), _uncached():
            beside.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(beside):
                for _ in range(WARM_UP):
                    self.function(*inputs)
            torch.cuda.current_stream(device).wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with _uncached(), torch.cuda.graph(graph):
            result = self.function(*inputs)
        return Recording(graph, inputs, result)

    def __getstate__(self) -> dict[str, Any]:  # a graph belongs to its process
        return {**self.__dict__, "_recordings": {}}


class GraphedLoss:
    """A loss of tensors and a network's weights, whose passes forward and backward are one recording on a GPU.

    Elsewhere, and for shapes that come only once, it is the function itself. Gradients of the weights reach them as
    from any loss, once for each call, before the next call.

    Args:
        function: inputs to a scalar and further tensors that are not differentiated.
        module: whose weights it is differentiated in.
        wanted: whether to record at all; decided at each call.
    """

    def __init__(
        self, function: Callable[..., tuple[Tensor, ...]], module: nn.Module, wanted: Callable[[], bool]
    ) -> None:
        self.function, self.module, self.wanted = function, module, wanted
        self._recorder = Recorder(self._differentiated, module)
        self._seen: set[Key] = set()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The loss, which may be differentiated, and the further tensors."""
        if inputs[0].is_cuda and self.wanted() and torch.is_grad_enabled() and self._again(inputs):
            found = self._recorder(inputs)
            if found is not None:
                return _Replayed.apply(found, inputs, *self._trained())
        loss, *further = self.function(*inputs)
        return loss, *(value.detach() for value in further)

    def _again(self, inputs: Sequence[Tensor]) -> bool:
        """Whether inputs of this shape came before: the last batch of an epoch is not worth a recording."""
        key = _signature(inputs)
        known = key in self._seen
        self._seen.add(key)
        return known

    def _trained(self) -> list[nn.Parameter]:
        return [weight for weight in self.module.parameters() if weight.requires_grad]

    def _differentiated(self, *inputs: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        with _new_leaves(self.module):
            loss, *further = self.function(*inputs)
            # Backward kernels have the precision of the forward ones already.
            with torch.autocast("cuda", enabled=False):
                gradients = torch.autograd.grad(loss, self._trained(), allow_unused=True)
        return (loss.detach(), *(value.detach() for value in further)), gradients


class _Replayed(torch.autograd.Function):
    """Runs a recording, and hands out the gradients that it has computed."""

    @staticmethod
    def forward(ctx: Any, found: Recording[Any], inputs: tuple[Tensor, ...], *weights: Tensor) -> tuple[Tensor, ...]:
        values, ctx.gradients = found.replay(inputs)
        values = tuple(value.clone() for value in values)
        ctx.mark_non_differentiable(*values[1:])
        ctx.set_materialize_grads(False)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if of_loss is None:
            return None, None, *(None for _ in ctx.gradients)
        given = [gradient for gradient in ctx.gradients if gradient is not None]
        scaled = iter(torch._foreach_mul(given, of_loss))  # new tensors: the next replay writes over these
        return None, None, *(None if gradient is None else next(scaled) for gradient in ctx.gradients)


class GraphedPass:
    """A function that is differentiated in its first tensor alone, whose passes are recordings on a GPU.

    For networks that stay as they are while it is used. Shapes that come often are recorded, in memory that all
    recordings share, so that a backward pass has to follow its forward pass before another one begins. `clear` gives
    the memory back.

    Args:
        function: tensors to one that may be differentiated, and one that may not.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, Tensor]]) -> None:
        self.function = function
        self._calls: Counter[Key] = Counter()
        self._made: dict[Key, Callable[..., tuple[Tensor, Tensor]]] = {}
        self._pool: Any = None
        self._flat = False  # whether the function has no gradient
        self.failed = False

    def __call__(self, u: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        """What the function makes of them."""
        if self.failed or not u.is_cuda or not _records.get():
            return self.function(u, *rest)
        differentiated = u.requires_grad and torch.is_grad_enabled() and not self._flat
        key = _signature((u, *rest)), differentiated, torch.is_autocast_enabled("cuda")
        self._calls[key] += 1
        if key not in self._made and self._calls[key] > RARE:
            self._record(key, differentiated, u, *rest)
        found = self._made.get(key)
        if found is None:
            values, fixed = self.function(u, *rest)
            self._flat = self._flat or (differentiated and not values.requires_grad)
            return values, fixed
        values, fixed = found(_Kept.apply(u) if differentiated else u.detach(), *rest)
        return values.clone(), fixed.detach().clone()  # the next call writes over its own

    def clear(self) -> None:
        """Give the memory of all recordings back."""
        if self._made or self._pool is not None:
            self._made.clear()
            self._pool = None
            gc.collect()  # PyTorch keeps a recording's graphs and tensors in a circle

    def _record(self, key: Key, differentiated: bool, u: Tensor, *rest: Tensor) -> None:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        own = tuple(value.detach().clone() for value in (u, *rest))
        own[0].requires_grad_(differentiated)
        try:
            with _recovering(u.device), _uncached(), torch.set_grad_enabled(differentiated):
                recorded = torch.cuda.make_graphed_callables(
                    self.function, own, num_warmup_iters=WARM_UP, allow_unused_input=True, pool=self._pool
                )
        except RuntimeError as error:
            self.failed = True
            _warn(error)
        else:
            self._made[key] = cast("Callable[..., tuple[Tensor, Tensor]]", recorded)
        if self.failed:  # the function itself fitted into memory before: it gets back what recordings took
            self.clear()
            torch.cuda.empty_cache()


class _Kept(torch.autograd.Function):
    """The same tensor; its gradient is a copy, since that of a recording is written over by the next one."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        return u.view_as(u)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.clone()


def _warn(error: RuntimeError) -> None:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    warnings.warn(f"runs without a CUDA graph: {reason}", GraphWarning, stacklevel=3)


def _signature(inputs: Sequence[Tensor]) -> Key:
    return tuple((tuple(value.shape), value.stride(), value.dtype, value.device) for value in inputs)


@contextmanager
def _new_leaves(module: nn.Module) -> Iterator[None]:
    """Other parameters in the same memory. The module's own may be held by a loss of another stream's, which would end
    a recording: autograd waits for the stream in which a parameter was first used."""
    places = [
        (part._parameters, name, weight)
        for part in module.modules()
        for name, weight in part._parameters.items()
        if weight is not None
    ]
    leaves = {id(weight): nn.Parameter(weight.detach(), weight.requires_grad) for _, _, weight in places}
    for parameters, name, weight in places:
        parameters[name] = leaves[id(weight)]
    try:
        yield
    finally:
        for parameters, name, weight in places:
            parameters[name] = weight


@contextmanager
def _uncached() -> Iterator[None]:
    """Autocast as it is, but without keeping narrowed weights, which would live outside of the recording."""
    on, narrow = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    with torch.autocast("cuda", narrow, enabled=on, cache_enabled=False):
        yield


@contextmanager
def _recovering(device: torch.device) -> Iterator[None]:
    """Where recording fails, random numbers of this device go on: PyTorch leaves a generator behind that takes the
    recording to be going on, and refuses to draw."""
    state = torch.cuda.get_rng_state(device)
    try:
        with warnings.catch_warnings():
            # The runs before a recording are of another stream, as they have to be.
            warnings.filterwarnings("ignore", message="The AccumulateGrad node's stream")
            yield
    except BaseException:
        torch.cuda.synchronize(device)
        fresh = torch.Generator(device)
        fresh.set_state(state)
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].graphsafe_set_state(fresh)
        raise


@contextmanager
def _as_they_were(modules: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Running statistics and random generators as they were before."""
    buffers = [buffer for module in modules for buffer in module.buffers()]
    before = [buffer.clone() for buffer in buffers]
    with torch.random.fork_rng([device]):
        yield
    with torch.no_grad():
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
