"""A user's own image files: how they are decoded, and what is chosen from a sample of them."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Annotated, Any, Final, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from avtcli.contracts import ImageData
from avtcli.errors import AvtError
from avtcli.seeding import subset
from avtplugins.datasets._decoding import Decoding
from avtplugins.datasets._encoded import EncodedSplit, encoded_data
from avtplugins.datasets._image_files import MEAN, STD

SAMPLE: Final = 200
"""Images that are read to learn what all are like."""
SAMPLE_SIDE: Final = 640
"""A sampled JPEG may be reduced to this many pixels or more while it is decoded, which is faster."""
DARK: Final = 32
"""Images whose values all lie below this have lost most of them, as those of 12 bits in files of 16."""
WHITE: Final = (255, 255, 255)

Channels = Annotated[Literal["auto", 1, 3], BeforeValidator(lambda value: int(value) if value in ("1", "3") else value)]
Level = Annotated[int, Field(ge=0, le=255)]
Colour = tuple[Level, Level, Level]
Figures = tuple[float, ...] | None
"""A figure of each channel; none has it chosen from the images."""


def sorted_classes(labels: Iterable[str]) -> tuple[str, ...]:
    """Return the different labels but for empty ones: numbers by value, then names."""

    def order(label: str) -> tuple[bool, int, str]:
        return (not label.isdecimal(), int(label) if label.isdecimal() else 0, label)

    return tuple(sorted({*labels} - {""}, key=order))


def own_images(
    train: EncodedSplit,
    test: EncodedSplit | None,
    how: Decoding,
    channels: Channels,
    *,
    mean: Figures,
    std: Figures,
    **facts: Any,
) -> ImageData:
    """Make a data set of a user's images; what is not given is chosen by its `complete`.

    Until then there are three channels with ImageNet's figures.

    Raises:
        AvtError: if mean and std are given for another number of channels.
    """
    stated = {len(figures) for figures in (mean, std) if figures is not None} | ({channels} if channels != "auto" else set())
    if len(stated) > 1 or not stated <= {1, 3}:
        raise AvtError(
            f"dataset.mean and dataset.std need a figure for each of 1 or 3 channels, found {mean}, {std} and channels "
            f"{channels}. Correct or omit them."
        )
    known: int | None = next(iter(stated), None)
    how = replace(how, channels=known or 3, may_reduce=True)
    train, test = train.decoded(how), None if test is None else test.decoded(how)
    n = how.channels
    data = encoded_data(train, test, mean=mean or _mean_of(MEAN, n), std=std or _mean_of(STD, n), **facts)
    if channels != "auto" and mean is not None and std is not None:
        return data
    return replace(data, complete=partial(_complete, data, known, mean, std))


def _mean_of(figures: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return figures if channels == 3 else (round(sum(figures) / 3, 4),)


def _complete(data: ImageData, channels: int | None, mean: Figures, std: Figures, usable: Tensor) -> ImageData:
    """Choose channels, mean and std from a sample of the images `usable`, (n,) int64; see `ImageData.complete`."""
    split, sides, firsts, squares, grey, highest = data.train, list[int](), list[Tensor](), list[Tensor](), True, 0
    assert isinstance(split, EncodedSplit)
    sample = split.decoded(replace(split.how, at_least=SAMPLE_SIDE))
    for i in usable[subset(len(usable), SAMPLE, "sample", len(usable))].tolist():
        try:
            image = sample.read(i)
        except AvtError:  # it is skipped and counted in training
            continue
        sides.append(min(image.shape[1:]))
        grey, highest = grey and bool((image == image[:1]).all()), max(highest, int(image.max()))
        pixels = image.double() / 255
        firsts.append(pixels.mean((1, 2)))
        squares.append(pixels.square().mean((1, 2)))
    if not sides:
        return replace(data, chosen={"channels": split.how.channels}, notes=(*data.notes, "no sampled image can be read"))
    how = replace(split.how, channels=channels or (1 if grey else 3))
    first, square = (torch.stack(parts).mean(0)[: how.channels] for parts in (firsts, squares))
    measured = {"mean": first, "std": (square - first.square()).clamp(min=1e-4).sqrt()}
    figures = {name: tuple(round(x, 4) for x in values.tolist()) for name, values in measured.items()}
    given: dict[str, Any] = {"channels": channels, "mean": mean, "std": std}
    chosen = {key: value for key, value in {"channels": how.channels, **figures}.items() if given[key] is None}
    kind = "grey" if how.channels == 1 else "RGB"
    described = [kind, *(f"{name} {_text(given[name] or figures[name])}" for name in figures)]
    notes = [f"images: {', '.join(described)}, measured on {len(sides)} of them"]
    if highest < DARK:
        notes += [f"images: the highest value is {highest} of 255. Where 16-bit files hold 12 bits, write them times 16"]
    return replace(
        data,
        train=split.decoded(how),
        test=data.test.decoded(how) if isinstance(data.test, EncodedSplit) else None,
        channels=how.channels,
        mean=mean or figures["mean"],
        std=std or figures["std"],
        typical_side=int(median(sides)),
        chosen=chosen,
        notes=(*data.notes, *notes),
    )


def _text(figures: tuple[float, ...]) -> str:
    return " ".join(f"{figure:.3g}" for figure in figures)
