"""Random numbers as a function of what they belong to.

Each draw has a key, such as (seed, epoch, purpose). Workers, processes and the point of resumption cannot change it, and
nothing of it needs to be stored.
"""

from hashlib import blake2b

import torch
from torch import Generator, Tensor


def seed_of(*key: int | str) -> int:
    """Return a seed in [0, 2^63) for a key; never Python's `hash`, which differs from process to process."""
    text = "/".join(str(part) for part in key)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def keyed_generator(*key: int | str, device: torch.device | str = "cpu") -> Generator:
    """Return a generator that stands at the start of the key's stream."""
    generator = Generator(device=device)
    generator.manual_seed(seed_of(*key))
    return generator


def subset(total: int, count: int | None, *key: int | str) -> Tensor:
    """Return the sorted numbers of `count` of `total` samples, (count,) int64, drawn without replacement by the key."""
    if count is None or count >= total:
        return torch.arange(total)
    return torch.randperm(total, generator=keyed_generator(*key))[:count].sort().values
