"""timm models, CNN or transformer."""

import contextlib
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

import timm
from pydantic import BeforeValidator
from timm.layers import PatchEmbed
from torch import Tensor, nn

from avtcli.contracts import Backbone, Code, Size
from avtcli.errors import AvtError, nearest, one_line, shown
from avtplugins.backbones._timm_taps import ModelTrace, TapLocation, default_code_tap, trace_model

VECTOR_TAP = "pre_logits"
"""The tap of the pooled feature."""


def _typed(value: Any) -> Any:
    """Read a text that is a number or truth value in TOML as one: only timm knows the types of its arguments."""
    with contextlib.suppress(ValueError, RecursionError):
        return tomllib.loads(f"value = {value}")["value"] if isinstance(value, str) else value
    return value


TimmArguments = dict[str, Annotated[Any, BeforeValidator(_typed)]]
"""Arguments of timm's model functions by name."""

SOURCES = ("pretrained", "checkpoint", "cache", "url", "hub")
"""Parts of the names of arguments that have timm read files or download."""
LARGEST_ARGUMENT = 2**16
"""Of a width, depth or size."""


@dataclass
class _Call:
    """State of one forward pass: the request, and the taps that the hooks read."""

    code: Code
    want: Collection[str]
    taps: dict[str, Tensor] = field(default_factory=dict)


class TimmBackbone(Backbone):
    """A timm model without classifier, with the code at one location of its trace; later layers read what `code` returns.

    Where the code stands at no location it is the pooled feature, as a map of one cell. Else a forward hook on the module at
    the code tap inserts the code, so that weights keep timm's names, under `model.`. Class token and registers bypass the
    code. Parameters that the vector does not depend on are frozen: several processes wait for the gradient of every other
    one. `arguments` are those that timm makes the model with.
    """

    def __init__(self, model: nn.Module, arguments: Mapping[str, Any], trace: ModelTrace, code_tap: str) -> None:
        super().__init__()
        self.model = model
        self.arguments = arguments
        self.taps = {**{location.name: location.channels for location in trace.locations}, VECTOR_TAP: trace.vector_dim}
        self.code_tap = code_tap
        self.vector_dim = trace.vector_dim
        self._call: _Call | None = None  # set during a forward pass only
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in trace.unused)
        for location in trace.locations:
            # a bound method, which a deep copy of this backbone binds to the copy
            model.get_submodule(location.name).register_forward_hook(partial(self._at, location))

    def _at(self, location: TapLocation, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Read a map, or insert the code."""
        call = self._call
        if call is None:
            return None
        if location.name == self.code_tap:
            return location.from_map(call.code(location.to_map(output)), output)
        if location.name in call.want:
            call.taps[location.name] = location.to_map(output)
        return None

    def forward(self, x: Tensor, code: Code, want: Collection[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """Encode images (B, C, H, W) into a vector (B, vector_dim) and the wanted taps."""
        call = self._call = _Call(code, want)
        try:
            vector = self.model(x)
        finally:
            self._call = None
        if self.code_tap == VECTOR_TAP:
            vector = code(vector[:, :, None, None]).flatten(1)
        taps = {**call.taps, VECTOR_TAP: vector}
        return vector, {name: taps[name] for name in want}

    def bare(self) -> nn.Module:
        """Return the timm model, with timm's names of its weights."""
        return self.model


def timm_backbone(
    name: str,
    /,
    *,
    in_channels: int,
    image_size: Size,
    code_at: str | None = None,
    pretrained: bool = False,
    args: TimmArguments | None = None,
) -> Backbone:
    """Any model of timm, as in `timm:resnet18`; taps are those of timm's feature names that are maps, and pre_logits.

    Args:
        name: timm's name of the model, with or without a tag.
        in_channels: given by the data.
        image_size: given by the data and the crop.
        code_at: the tap that is the code; left out, the deepest map of at least 4x4 cells with layers after it, or if the
            pooled feature depends on no map, that feature as a map of one cell.
        pretrained: start from timm's published weights, which are downloaded.
        args: timm's own arguments of the model, as in `-o backbone.args.patch_size=4`.
    """
    if any(mark in name for mark in "/\\:"):
        raise AvtError(f"Models are those that timm itself defines, by name, found the source {shown(name)}. {_FROM_FILE}.")
    _check_arguments(args or {})
    if not timm.is_model(name):
        known = timm.list_models()
        raise AvtError(f"timm {timm.__version__} has no model {shown(name)}. {nearest(name, known)}It has {len(known)} others.")
    given = {"in_chans": in_channels, "img_size": image_size}
    model, arguments = _create(name, args or {}, given, pretrained=pretrained)
    _check_patches(model, name, image_size)
    trace = trace_model(model, name, in_channels=in_channels, image_size=image_size)
    able = [*(location.name for location in trace.locations if location.reaches), VECTOR_TAP]
    if code_at is None:
        found = default_code_tap(trace.locations)
        code_at = VECTOR_TAP if found is None else found.name
    if code_at not in able:
        is_map = any(location.name == code_at for location in trace.locations)
        why = "the pooled feature does not depend on it" if is_map else "no map of that name"
        hint = f"{nearest(code_at, able)}Taps: {', '.join(able)}"
        raise AvtError(f"The code of timm's '{name}' cannot stand at '{code_at}': {why}. {hint}.")
    return TimmBackbone(model, arguments, trace, code_at)


def variants() -> Collection[str]:
    """The names that `timm:NAME` takes: of models, and of models with the tag of their published weights."""
    return {*timm.list_models(), *timm.list_pretrained()}


def input_size(variant: str | None) -> tuple[int, int]:
    """The shorter side of the images that timm trained a model on, 224 where it states none, and the patch in its name."""
    stated = timm.get_pretrained_cfg(variant) if variant is not None and timm.is_model(variant) else None
    patch = re.search(r"patch(\d+)", variant or "")
    return 224 if stated is None else min(stated.input_size[1:]), int(patch[1]) if patch else 1


def _check_patches(model: nn.Module, name: str, image_size: Size) -> None:
    """Refuse images whose last rows and columns fill no patch: timm would leave them out."""
    patches = getattr(model, "patch_embed", None)
    patch = max(patches.patch_size) if isinstance(patches, PatchEmbed) else 1
    if any(side % patch for side in image_size):
        found, side = "{}x{}".format(*image_size), max(min(image_size) // patch, 1) * patch
        raise AvtError(
            f"timm's '{name}' takes images with sides that are multiples of {patch} px, found {found}. Give "
            f"`-o augment.crop={side}`."
        )


_FROM_FILE = "Weights in a file are loaded by `--init-from FILE`"


def _check_arguments(args: Mapping[str, Any]) -> None:
    """Refuse all but numbers and names: nothing that timm would read a file for, or download, or take for ever to build."""
    for key, value in _leaves("args", args):
        if any(part in key.removeprefix("args").lower() for part in SOURCES):
            raise AvtError(f"timm's arguments are of the network alone, found the source '{key}'. {_FROM_FILE}.")
        if isinstance(value, str) and any(mark in value for mark in "/\\:"):
            raise AvtError(f"timm's arguments are numbers and names, found a path or address at '{key}'. {_FROM_FILE}.")
        if isinstance(value, int | float) and not abs(value) <= LARGEST_ARGUMENT:
            raise AvtError(f"timm's arguments are at most {LARGEST_ARGUMENT}, found {value} at '{key}'.")


def _leaves(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Each value within tables and lists, with its place."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _leaves(f"{place}.{str(key)[:100]}", part)
    elif isinstance(value, list | tuple):
        yield place, len(value)
        for part in value:
            yield from _leaves(place, part)
    else:
        yield place, value


def _create(
    name: str, args: Mapping[str, Any], given: Mapping[str, Any], *, pretrained: bool
) -> tuple[nn.Module, dict[str, Any]]:
    """Make a timm model, and return its arguments; img_size is left out where the model, being convolutional, takes none."""
    merged = {**given, **args}
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0, **merged)
    except AvtError:
        raise
    except TypeError as error:
        if "img_size" in given and "img_size" not in args and "'img_size'" in str(error):
            return _create(name, args, {"in_chans": given["in_chans"]}, pretrained=pretrained)
        raise AvtError(f"timm's '{name}' does not take these arguments: {one_line(error)}.") from error
    except Exception as error:  # timm and its download can raise anything
        if pretrained:
            hint = "Without internet access, use --init-from with a safetensors file in timm's names, without pretrained"
            cause = one_line(error).split(". ")[0]
            raise AvtError(f"The published weights of timm's '{name}' cannot be loaded: {cause}. {hint}.") from error
        raise AvtError(f"timm's '{name}' cannot be made with {merged}: {one_line(error)}.") from error
    return model, merged
