"""Bounds on what building a network may allocate, where a file describes the network."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_any, tree_leaves, tree_map_only

from avtcli.errors import AvtError

MAX_PIXELS: Final = 2048 * 2048
"""Of an image that a network is built for."""
ROOM_BYTES: Final = 64 * 2**20
"""For buffers that are not stored with the weights, and whatever building allocates in between."""
ROOM_TENSORS: Final = 1000
LARGEST: Final = 64 * MAX_PIXELS * 4  # bytes of a first map of 64 channels at the largest image


class BoundedBuilding(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While a network is built: what it allocates is bounded by the weights that it will be given.

    The size of each result is taken from the same operation on tensors without storage, before the operation itself runs.
    Tensors that are made from nothing (parameters, buffers, inputs) count together; the result of any other operation alone.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        held = sum(tensor.numel() * max(4, tensor.element_size()) for tensor in weights.values())
        self.left_bytes, self.left_tensors = 4 * held + ROOM_BYTES, 16 * len(weights) + ROOM_TENSORS

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled while a network is built, and to exclude this class torch would import its compiler."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation, unless its result is too large."""
        kwargs = kwargs or {}
        if not func._schema.is_mutable:  # in-place operations allocate nothing
            made = not tree_any(_is_tensor, (args, kwargs))
            size = _result_bytes(func, args, {**kwargs, "device": "meta"} if made else kwargs)
            if made:
                self.left_bytes, self.left_tensors = self.left_bytes - size, self.left_tensors - 1
            if size > LARGEST or self.left_bytes < 0 or self.left_tensors < 0:
                raise AvtError(
                    f"The network described is larger than its weights ({func} would make {size / 1e6:.3g} MB): the file was "
                    "damaged or tampered with."
                )
        return func(*args, **kwargs)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _result_bytes(func: Callable[..., Any], args: Any, kwargs: Any) -> int:
    """The size of an operation's result; 0 where only running it can say."""
    args, kwargs = tree_map_only(Tensor, _without_storage, (args, kwargs))
    try:
        results = tree_leaves(func(*args, **kwargs))
    except Exception:  # such as reading a value; an invalid call will raise again
        return 0
    return max((result.untyped_storage().nbytes() for result in results if _is_tensor(result)), default=0)


def _without_storage(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
