"""A sum of objectives: several losses on the vectors of one encoder, as one objective."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from avtcli.contracts import Loss, Objective, Prediction, Role, Target
from avtcli.errors import AvtError


class SumObjective(Objective):
    """The weighted sum of the parts' losses, each on its own views.

    The views are the union of the parts' views: originals first, each role as often as the part that has it most often. A
    part's k-th view of a role is the union's, which all parts share. The prediction is that of the first part with a decoder.
    The encoder has one noise scale: where one part asks for noise, the code of every view is noisy, for all parts.

    Args:
        parts: (name, objective, weight); figures are named `NAME`, the part's own loss, and `NAME.figure`.

    Raises:
        AvtError: if two parts ask for noise of different scales.
    """

    def __init__(self, parts: Sequence[tuple[str, Objective, float]]) -> None:
        super().__init__()
        objectives = [objective for _, objective, _ in parts]
        self.parts = nn.ModuleDict({name: objective for name, objective, _ in parts})
        self.weights = {name: weight for name, _, weight in parts}
        roles: tuple[Role, ...] = ("original", "transformed")
        self.views = tuple(role for role in roles for _ in range(max(part.views.count(role) for part in objectives)))
        self.depends_on_batch = any(part.depends_on_batch for part in objectives)
        self.decoding = next((name for name, part, _ in parts if part.prediction is not None), parts[0][0])
        self.prediction = self._part(self.decoding).prediction
        scales = {name: part.noise_scale for name, part, _ in parts if part.noise_scale}
        if len(set(scales.values())) > 1:
            found = ", ".join(f"objective.{name}.noise_scale={scale:g}" for name, scale in scales.items())
            raise AvtError(
                f"The parts of the sum '{'+'.join(self.parts)}' share one code, so one noise scale, found {found}. Give all "
                "the same, or 0."
            )
        self.noise_scale = max(scales.values(), default=0.0)

    def _part(self, name: str) -> Objective:
        part = self.parts[name]
        assert isinstance(part, Objective)
        return part

    def _codes_of(self, part: Objective, codes: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The codes of a part's own views."""
        repeats = [part.views[:place].count(role) for place, role in enumerate(part.views)]
        return tuple(codes[self.views.index(role) + repeat] for role, repeat in zip(part.views, repeats, strict=True))

    def forward(self, codes: tuple[Tensor, ...], targets: tuple[Target, ...]) -> Loss:
        """Return the loss of each sample, (B,), the loss of each part without its weight, and the parts of it."""
        figures: dict[str, Tensor] = {}
        weighted = []
        for name, weight in self.weights.items():
            part = self._part(name)
            loss: Loss = part(self._codes_of(part, codes), targets[: part.views.count("transformed")])
            weighted.append(weight * loss.per_sample)
            figures |= {name: loss.per_sample, **{f"{name}.{figure}": values for figure, values in loss.parts.items()}}
        return Loss(torch.stack(weighted).sum(0), figures)

    def predict(self, codes: tuple[Tensor, ...]) -> Prediction:
        """Predict by the first part with a decoder.

        Raises:
            NotImplementedError: if no part has one.
        """
        part = self._part(self.decoding)
        return part.predict(self._codes_of(part, codes))

    def log_var_layer(self) -> nn.Module | None:
        """Return the log-variance layers of all parts that have one; none without."""
        layers = [layer for name in self.weights if (layer := self._part(name).log_var_layer()) is not None]
        return nn.ModuleList(layers) if layers else None
