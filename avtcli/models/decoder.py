"""A linear decoder of transformations, for objectives to build on."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from avtcli.contracts import Prediction


class Decoder(nn.Module):
    """q(t | z~, z): mean and log-variance are two linear layers on the concatenated vectors (AVT, section 3.3).

    Args:
        width: length of the concatenated vectors.
        outputs: number of values to predict.
        log_var_scale: factor on the log-variance layer's output (the release: 1 / 1000); none for no log-variance.
    """

    def __init__(self, width: int, outputs: int, *, log_var_scale: float | None = None) -> None:
        super().__init__()
        self.mean_head = nn.Linear(width, outputs)
        self.log_var_head = None if log_var_scale is None else nn.Linear(width, outputs)
        self.log_var_scale = log_var_scale
        for head in (self.mean_head, self.log_var_head):
            if head is not None:
                nn.init.zeros_(head.bias)

    def forward(self, codes: Sequence[Tensor]) -> Prediction:
        """Predict from vectors, (B, D) each, that add up to the decoder's width."""
        vectors = torch.cat(list(codes), dim=1)
        log_var = None if self.log_var_head is None else self.log_var_head(vectors) * self.log_var_scale
        return Prediction(self.mean_head(vectors), log_var)
