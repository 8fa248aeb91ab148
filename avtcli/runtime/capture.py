"""Work on a GPU as one CUDA graph, so that the host launches it at once instead of kernel by kernel."""

import warnings
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

import torch
from torch import Tensor

from avtcli.errors import one_line
from avtcli.events import Notice, OnEvent, ignore

T = TypeVar("T")

WARM_UP: Final = 3
"""Calls before the capture: they compile, choose algorithms and fill caches, which a capture must not do."""


class CapturedCalls(Generic[T]):
    """Calls of one kind that all work on tensors of the same shapes: the first `WARM_UP` run as they are, then one is captured.

    The warm-up calls are real ones: the results of all calls are the same. What a call draws at random and reads from the host
    must be among its inputs. Work that cannot be captured, as it waits for the device, goes on as it began, with a notice.

    Args:
        device: where the work is; anywhere but on a CUDA device nothing is captured.
        enabled: whether to capture at all.
        name: of the work, for the notice.
        on_event: receives the notice.
    """

    def __init__(self, device: torch.device, *, enabled: bool = True, name: str = "work", on_event: OnEvent = ignore) -> None:
        self._enabled, self._calls, self._name, self._on_event = enabled and device.type == "cuda", 0, name, on_event
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._result: list[T] = []
        self._stream = torch.cuda.Stream(device) if self._enabled else None  # type: ignore[no-untyped-call]

    def __call__(self, inputs: Sequence[Tensor], work: Callable[[], T]) -> T:
        """Return the result of `work`, which reads `inputs`.

        Tensors in the result of a captured call are overwritten by the next one. The inputs of the call that is captured belong
        to the graph from then on: later ones are copied into them, where they are others.
        """
        if self._graph is not None:
            pairs = [(own, given) for own, given in zip(self._inputs, inputs, strict=True) if own is not given]
            if pairs:
                torch._foreach_copy_([own for own, _ in pairs], [given for _, given in pairs])
            self._graph.replay()
            return self._result[0]
        if not self._enabled or self._stream is None:
            return work()
        self._calls += 1
        if self._calls > WARM_UP:
            return self._capture(inputs, work)
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = self._watched(work) if self._calls == WARM_UP else work()
        current.wait_stream(self._stream)
        return result

    def _watched(self, work: Callable[[], T]) -> T:
        """Do the work and note whether it waits for the device, which would make a capture fail half-way."""
        mode = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                result = work()
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        places = [f"{w.filename}:{w.lineno}" for w in caught if "synchronizing CUDA operation" in str(w.message)]
        if places:
            self._refuse(f"it waits for the GPU at {places[0]}")
        return result

    def _capture(self, inputs: Sequence[Tensor], work: Callable[[], T]) -> T:
        graph = torch.cuda.CUDAGraph()
        try:
            # other threads, which pin memory, say, may go on meanwhile; a capture that fails leaves its stream the current one
            with (
                torch.cuda.stream(self._stream),
                torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"),
            ):
                self._result = [work()]
        except RuntimeError as error:
            self._refuse(one_line(error))
            return work()
        self._graph, self._inputs = graph, list(inputs)
        graph.replay()
        return self._result[0]

    def _refuse(self, reason: str) -> None:
        self._enabled = False
        self._on_event(Notice(f"{self._name} cannot be captured as a CUDA graph and is slower: {reason}"))
