"""What a check of the installation finds."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One line of the check: its subject, whether it is in order, what was found, and what to do about it."""

    subject: str
    status: Literal["ok", "note", "problem"]
    found: str
    way_out: str = ""
