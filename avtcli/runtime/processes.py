"""Several processes that share each batch."""

import torch
from torch import Tensor
from torch.distributed.nn.functional import all_gather


def gather_batch(rows: Tensor, count: int) -> Tensor:
    """Gather the rows of all processes in the order of the whole batch; gradients flow back to each process's own rows.

    Process r of W holds the rows r, r + W, r + 2 W and so on of the batch.

    Args:
        rows: this process's, (B, ...).
        count: rows of the whole batch.

    Returns:
        (count, ...).
    """
    most = -(-count // torch.distributed.get_world_size())
    padded = torch.cat([rows, rows.new_zeros(most - len(rows), *rows.shape[1:])]) if len(rows) < most else rows
    parts = all_gather(padded.contiguous())  # type: ignore[no-untyped-call]
    return torch.stack(list(parts), 1).flatten(0, 1)[:count]
