"""The context of a command: device, workers, seed and receiver of events."""

from dataclasses import dataclass

import torch

from avtcli.events import OnEvent, ignore
from avtcli.runtime.devices import choose_device


@dataclass(frozen=True)
class Context:
    """How a command runs, independent of its subject.

    Attributes:
        device: compute device of networks and batches.
        workers: processes that read images which do not fit in memory; none means automatic.
        seed: every random draw follows from it.
        on_event: receives progress, notices and saved files.
    """

    device: torch.device
    workers: int | None = None
    seed: int = 0
    on_event: OnEvent = ignore

    @classmethod
    def build(cls, *, device: str = "auto", workers: int | None = None, seed: int = 0, on_event: OnEvent = ignore) -> "Context":
        """Resolve a device by name: auto, cpu, cuda or mps.

        Raises:
            AvtError: if the device is not available.
        """
        return cls(torch.device(choose_device(device)), workers, seed, on_event)
