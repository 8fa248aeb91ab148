"""SimCLR: two transformed views of an image agree, all other images of the batch are negatives.

Chen, Kornblith, Norouzi and Hinton, "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020 (arXiv
2002.05709), equation 1 (NT-Xent) and section 4.2 (the projection head).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from avtcli.contracts import Loss, Objective, Target
from avtcli.errors import AvtError


class SimCLR(Objective):
    """NT-Xent: -log of exp(cos(u, v) / T) over the sum of exp(cos(u, w) / T) for all 2 B - 1 other views w of the batch.

    The vectors u are the outputs of a projection head with one hidden layer, which the representation is read before.
    """

    views = ("transformed", "transformed")
    prediction = None
    depends_on_batch = True

    def __init__(self, vector_dim: int, *, temperature: float, projection_dim: int) -> None:
        super().__init__()
        self.temperature = temperature
        self.projection = nn.Sequential(nn.Linear(vector_dim, vector_dim), nn.ReLU(), nn.Linear(vector_dim, projection_dim))

    def forward(self, codes: tuple[Tensor, ...], targets: tuple[Target, ...]) -> Loss:
        """Return the loss of each image, (B,), averaged over its two views, and how often its other view is nearest."""
        first, second = codes
        count = len(first)
        views = functional.normalize(self.projection(torch.cat([first, second])), dim=1)
        logits = views @ views.T / self.temperature
        logits = logits.masked_fill(torch.eye(2 * count, dtype=torch.bool, device=logits.device), -torch.inf)
        positives = torch.arange(2 * count, device=logits.device).roll(count)
        loss = functional.cross_entropy(logits, positives, reduction="none")
        right = (logits.argmax(1) == positives).to(loss.dtype)
        return Loss(loss.view(2, count).mean(0), {"accuracy": right.view(2, count).mean(0)})


def simclr(*, vector_dim: int, temperature: float = 0.5, projection_dim: int = 128) -> Objective:
    """SimCLR's objective on two transformed views of each image; use it with `--transform affine+photometric`.

    Args:
        vector_dim: given by the backbone.
        temperature: divides the cosines, above 0; the paper's choice on CIFAR-10 is 0.5.
        projection_dim: length of the projected vectors that are compared, 1 or more.
    """
    if temperature <= 0 or projection_dim < 1:
        found = f"{temperature} and {projection_dim}"
        raise AvtError(f"objective.temperature and projection_dim need values above 0, found {found}.")
    return SimCLR(vector_dim, temperature=temperature, projection_dim=projection_dim)
