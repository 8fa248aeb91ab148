"""The autoencoder of transformations: one Siamese encoder and a Gaussian decoder on the two codes."""

from typing import Literal

import torch
from torch import Tensor, nn

from avtcli.models.encoder import Encoder


class AVTModel(nn.Module):
    """q(t | z~, z): mean and log-variance are two linear layers on [vector(original), vector(transformed)] (AVT, section 3.3).

    The encoder is called once a view, original first: each view is normalised by its own batch statistics and the running
    averages move twice, as published. Concatenating the views into one batch is not the same. Under autocast the encoder alone
    computes in reduced precision: what the decoder says has the precision of its weights.

    Args:
        encoder: the Siamese encoder.
        outputs: how many numbers are predicted.
        has_log_var: whether a log-variance is predicted too.
        log_var_scale: factor on the log-variance layer's output (the release: 1 / 1000).
        views: whose codes the decoder sees: the pair's, or the transformed image's alone (RotNet).
    """

    def __init__(
        self,
        encoder: Encoder,
        outputs: int,
        *,
        has_log_var: bool,
        log_var_scale: float = 1.0,
        views: Literal["both", "transformed"] = "both",
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.views = views
        width = encoder.backbone.vector_dim * (2 if views == "both" else 1)
        self.mean_head = nn.Linear(width, outputs)
        self.log_var_head = nn.Linear(width, outputs) if has_log_var else None
        self.log_var_scale = log_var_scale
        for head in (self.mean_head, self.log_var_head):
            if head is not None:
                nn.init.zeros_(head.bias)

    def normalise(self, images: Tensor) -> Tensor:
        """Turn images, float in [0, 1] or uint8, (B, C, H, W), into what the network takes."""
        return self.encoder.normalise(images)

    def forward(
        self, x: Tensor, y: Tensor, noise_x: Tensor | None = None, noise_y: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Predict the transformation between two images.

        Args:
            x: the originals, normalised, (B, C, H, W).
            y: the transformed images, likewise.
            noise_x: eps of the originals' codes; drawn where left out in training, none in eval mode.
            noise_y: eps of the transformed images' codes.

        Returns:
            The mean of the normalised target, (B, outputs), and the log-variance that the likelihood uses, likewise, or none.
        """
        seen = [(x, noise_x), (y, noise_y)] if self.views == "both" else [(y, noise_y)]
        vectors = torch.cat([self.encoder.encode(view, noise)[0] for view, noise in seen], dim=1)
        with torch.autocast(vectors.device.type, enabled=False):
            vectors = vectors.to(self.mean_head.weight.dtype)
            log_var = None if self.log_var_head is None else self.log_var_head(vectors) * self.log_var_scale
            return self.mean_head(vectors), log_var
