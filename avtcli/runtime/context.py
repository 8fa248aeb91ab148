"""The context of a command: device, workers, seed and receiver of events."""

from dataclasses import dataclass

import torch

from avtcli.events import OnEvent, ignore
from avtcli.runtime.devices import choose_device


@dataclass(frozen=True)
class Context:
    """How a command runs: compute device, processes that read images (none: automatic), seed, and receiver of events."""

    device: torch.device
    workers: int | None = None
    seed: int = 0
    on_event: OnEvent = ignore

    @classmethod
    def build(cls, *, device: str = "auto", workers: int | None = None, seed: int = 0, on_event: OnEvent = ignore) -> "Context":
        """Resolve a device by name: auto, cpu, cuda or mps; see `choose_device`."""
        return cls(torch.device(choose_device(device)), workers, seed, on_event)
