"""Descriptions of plugins for people: options with their types, layers of a backbone, parameters of a family."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import TypeAdapter

from avtcli import registry
from avtcli.config.components import Plugin
from avtcli.config.model_spec import ModelSpec
from avtcli.errors import AvtError
from avtcli.geometry.family_building import build_family
from avtcli.models.model_building import build_encoder
from avtcli.models.weights import PRETRAINED
from avtcli.plugin_options import option_helps, plain
from avtcli.registry import PluginInfo


@dataclass(frozen=True)
class PluginOption:
    """An option as the plugin's signature states it: type with bounds as text, default (none: it is needed, or unset), help."""

    name: str
    type: str
    default: Any
    required: bool
    help: str


@dataclass(frozen=True)
class BackboneFacts:
    """A backbone as built for images of a shape (channels, height, width): its layers with the shapes of their features."""

    image: tuple[int, int, int]
    layers: dict[str, tuple[int, ...]]
    code: str
    weights: int


@dataclass(frozen=True)
class PluginFacts:
    """A plugin as it describes itself.

    Attributes:
        kind: one of `registry.KINDS`.
        name: as given, with its variant.
        distribution: that installs it.
        version: of the distribution.
        help: its docstring without the section on its arguments.
        variant: the help of what follows the name after a colon; none where nothing may.
        options: those of `-o KIND.KEY=VALUE`.
        backbone: of a backbone that can be built with its defaults.
        parameters: of a family of transformations: the components of its target, with their units.
        problem: why `backbone` or `parameters` are missing.
    """

    kind: str
    name: str
    distribution: str
    version: str
    help: str
    variant: str | None
    options: tuple[PluginOption, ...]
    backbone: BackboneFacts | None = None
    parameters: dict[str, str] | None = None
    problem: str | None = None


def describe_plugin(info: PluginInfo, spec: str, *, side: int | None = None) -> PluginFacts:
    """Describe a plugin; `spec` is its name, with a variant if it takes one, `side` that of a backbone's images.

    Raises:
        AvtError: if it cannot be imported, or takes no variant and one is given.
    """
    function = registry.load(info)
    signature, doc = inspect.signature(function), inspect.getdoc(function) or ""
    helps, variants = option_helps(doc), [p for p in signature.parameters.values() if p.kind is p.POSITIONAL_ONLY]
    if registry.split_name(spec)[1] is not None and not variants:
        raise AvtError(f"The {info.kind} '{info.name}' takes nothing after a colon, found '{spec}'. Write `{info.name}` alone.")
    options = tuple(_option(signature.parameters[name], helps.get(name, "")) for name in registry.options(info))
    backbone, parameters, problem = None, None, None
    try:
        if info.kind == "backbone":
            backbone = backbone_facts(spec, {}, side=side)
        elif info.kind == "transform":
            family = build_family(spec, {})
            parameters = dict(zip(family.names, family.units, strict=True))
    except AvtError as error:
        if spec != info.name:  # what was asked for is the variant
            raise
        problem = str(error)
    variant = helps.get(variants[0].name, "") if variants else None
    text = doc.partition("\nArgs:")[0].strip()
    return PluginFacts(info.kind, spec, info.distribution, info.version, text, variant, options, backbone, parameters, problem)


def backbone_facts(spec: str, options: Mapping[str, Any], *, side: int | None = None) -> BackboneFacts:
    """Build a backbone with random weights for colour images of a side in pixels, by default its own, and encode one.

    Raises:
        AvtError: if it does not take such images, or needs a variant or options.
    """
    side = side or registry.input_size(spec).side
    own = {key: value for key, value in options.items() if key != PRETRAINED}  # nothing is downloaded
    plugin = Plugin.model_validate({"name": registry.full_name("backbone", spec), **own})
    encoder = build_encoder(ModelSpec(backbone=plugin, channels=3, size=(side, side), mean=(0.0,), std=(1.0,))).eval()
    with torch.inference_mode():
        taps = encoder.features(torch.zeros(1, 3, side, side), encoder.layers)
    shapes = {name: tuple(tap.shape[1:]) for name, tap in taps.items()}
    weights = sum(parameter.numel() for parameter in encoder.backbone.parameters())
    return BackboneFacts((3, side, side), shapes, encoder.backbone.code_tap, weights)


def _option(parameter: inspect.Parameter, text: str) -> PluginOption:
    required = parameter.default is parameter.empty
    default = None if required else plain({"value": parameter.default}).get("value")
    return PluginOption(parameter.name, _type_text(parameter.annotation), default, required, text)


def _type_text(annotation: Any) -> str:
    if annotation is inspect.Parameter.empty:
        return "any"
    try:
        schema = TypeAdapter(annotation).json_schema()
    except Exception:  # what pydantic cannot describe may be of any type
        return inspect.formatannotation(annotation)
    return _schema_text(schema, schema.get("$defs", {}))


_TYPES = {"number": "float", "integer": "int", "boolean": "bool", "string": "text", "object": "table", "null": "none"}
_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def _schema_text(schema: Mapping[str, Any], defs: Mapping[str, Any]) -> str:
    """Describe a JSON schema: the type, with its bounds."""
    if "$ref" in schema:
        return _schema_text(defs[schema["$ref"].rpartition("/")[2]], defs)
    if "anyOf" in schema:
        return " or ".join(_schema_text(part, defs) for part in schema["anyOf"] if part.get("type") != "null")
    if "enum" in schema or "const" in schema:
        return "|".join(map(str, schema.get("enum", [schema.get("const")])))
    if schema.get("type") == "array":
        items = schema.get("prefixItems") or [schema.get("items", {})]
        many = f"{len(items)} of " if "prefixItems" in schema else "list of "
        return many + _schema_text(items[0], defs)
    bounds = [f"{sign} {schema[key]:g}" for key, sign in _BOUNDS.items() if key in schema]
    name = "path" if schema.get("format") == "path" else schema.get("type", "any")
    return " ".join([_TYPES.get(name, name), *([" and ".join(bounds)] if bounds else [])])
