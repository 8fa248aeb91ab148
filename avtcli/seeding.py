"""Random numbers as a function of a key, such as (seed, epoch, purpose).

Workers, processes and resumption cannot change a draw, and no generator state is stored.
"""

from hashlib import blake2b

import torch
from torch import Generator, Tensor


def seed_of(*key: int | str) -> int:
    """Return a seed in [0, 2^63) for a key, the same in every process."""
    text = "/".join(str(part) for part in key)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def keyed_generator(*key: int | str, device: torch.device | str = "cpu") -> Generator:
    """Return a generator at the start of the key's stream."""
    generator = Generator(device=device)
    generator.manual_seed(seed_of(*key))
    return generator


def subset(total: int, count: int | None, *key: int | str) -> Tensor:
    """Draw `count` of `total` indices without replacement by the key; sorted, (count,) int64."""
    if count is None or count >= total:
        return torch.arange(total)
    return torch.randperm(total, generator=keyed_generator(*key))[:count].sort().values
