"""Valid files of each kind, and seeded mutations of them: of one to three fields, or of bytes."""

import json
import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import tomli_w
import torch
from safetensors.torch import load, save

from avtcli.config.components import Plugin
from avtcli.config.model_spec import ModelSpec
from avtcli.config.pretrain_config import PretrainConfig
from avtcli.config.resolution import resolve, resolve_plugin, resolve_probe
from avtcli.models.model_building import build_encoder
from avtcli.models.weights import open_weights, restore_encoder, restore_model
from avtcli.storage.banks import generate_bank, load_bank

RAW = {'"@HUGE@"': "1" + "0" * 5000, '"@INF@"': "1e400", '"@DEEP@"': "[" * 100_000 + "]" * 100_000}
"""What neither json nor tomli_w writes."""
CANARY = "canary.pth"
VALUES: list[Any] = [
    *(name.strip('"') for name in RAW),
    *(None, True, -1, 0, 1, 3, 0.5, -0.5, 60, 99_999, 2**31, 2**63, 10**30, 1e308, float("nan")),
    *("", "x", "\x1b[31mred\x1b[0m", "[link=http://a]b[/link]", "\ud800", "x" * 1_000_000, "a\nb\0c", "nin", "alexnet"),
    *("os:system", "../evil", "timm:hf-hub:a/b", "timm:local-dir:.", "timm:test_vit", CANARY, f"./{CANARY}", "http://a/b.pth"),
    *([], {}, [1], [[]], [99_999, 99_999], [0.5] * 100_000, {"name": "nin"}, {"a": {"b": [1]}}, {"checkpoint_path": CANARY}),
]
KEYS = ["pretrained", "checkpoint_path", "args", "__metadata__", "\x1b[2J", "\ud800", "x" * 100_000, "name", "about", ""]

Make = Callable[[random.Random, Path], Path]


@dataclass(frozen=True)
class Kind:
    """One kind of file: how a mutated one is made in a folder, how it is read, and a command that reads it."""

    make: Make
    read: Callable[[Path], Any]
    line: str


def mutate(tree: Any, rng: random.Random) -> Any:
    """Change one to three places of plain data, which is changed in place."""
    holder = {"root": tree}
    for _ in range(rng.randint(1, 3)):
        places = list(_places(holder))
        parent, key = rng.choice(places)
        how = rng.random()
        if how < 0.15 and parent is not holder:
            del parent[key]
        elif how < 0.3 and isinstance(parent[key], dict):
            parent[key][rng.choice(KEYS)] = deepcopy(rng.choice(VALUES))
        else:
            parent[key] = deepcopy(rng.choice(VALUES))
    return holder["root"]


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree[:20]):
        yield tree, key
        if isinstance(value, dict | list):
            yield from _places(value)


def mutate_bytes(blob: bytes, rng: random.Random) -> bytes:
    at, end = sorted(rng.choices(range(len(blob)), k=2))
    if rng.random() < 0.5:  # where the header is
        at, end = at % 200, at % 200 + end % 50
    junk = rng.choice([b"", b"\0" * 8, b"\xff" * 9, rng.randbytes(20), blob[:100], b'"\\ud800"'])
    return rng.choice([blob[:at], blob[:at] + junk + blob[at:], blob[:at] + junk + blob[end:], blob + junk])


def to_json(tree: Any) -> bytes:
    text = json.dumps(tree)
    for name, raw in RAW.items():
        text = text.replace(name, raw).replace(name.replace('"', '\\"'), raw)
    return text.encode()


def mutate_tensors(blob: bytes, rng: random.Random) -> bytes:
    """Of a safetensors file: its header, its metadata, or its bytes."""
    if rng.random() < 0.25:
        return mutate_bytes(blob, rng)
    length = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + length])
    if rng.random() < 0.6:
        header["__metadata__"]["avt"] = to_json(mutate(json.loads(header["__metadata__"]["avt"]), rng)).decode()
        text = json.dumps(header).encode()
    else:
        text = to_json(mutate(header, rng))
    stated = len(text) if rng.random() < 0.95 else rng.choice([0, 1, 2**63, 2**64 - 1, len(text) - 1, len(blob)])
    return stated.to_bytes(8, "little") + text + blob[8 + length :]


def export_of(backbone: dict[str, Any]) -> bytes:
    spec = ModelSpec(backbone=Plugin.model_validate(backbone), channels=1, size=(32, 32), mean=(0.5,), std=(0.25,))
    config = PretrainConfig().model_dump(mode="json", exclude_none=True)
    about = {"model": spec.model_dump(mode="json", exclude_none=True), "step": 1, "config": config, "version": "0"}
    return save(build_encoder(spec).state_dict(), {"avt": json.dumps(about)})


def kinds(folder: Path, run: Path) -> dict[str, Kind]:
    """Every kind of file, by name; `run` is a finished run."""
    nin, vit = (export_of(b) for b in ({"name": "nin", "width": 0.05}, {"name": "timm:test_vit", "args": {"depth": 3}}))
    family = resolve_plugin("transform", Plugin(name="projective"))
    bank = folder / "valid-bank.safetensors"
    generate_bank(bank, plugin=family, size=32, count=20, seed=0, on_event=lambda event: None)
    recipe = resolve({"backbone": {"name": "nin", "width": 0.05}}, recipe="default").model_dump(mode="json", exclude_none=True)
    probe = resolve_probe({}, recipe=None).model_dump(mode="json", exclude_none=True)
    step = next((run / "checkpoints").glob("step-*9"))

    def tensors(blob: bytes) -> Make:
        return lambda rng, out: _written(out / "x.safetensors", mutate_tensors(blob, rng))

    def toml(tree: dict[str, Any]) -> Make:
        return lambda rng, out: _written(out / "x.toml", _toml(tree, rng))

    def checkpoint(rng: random.Random, out: Path) -> Path:
        (out / "step-0000000009").mkdir(exist_ok=True)
        blobs = {name: (step / name).read_bytes() for name in ("model.safetensors", "state.safetensors", "state.json")}
        if rng.random() < 0.7:
            blobs["state.json"] = to_json(mutate(json.loads(blobs["state.json"]), rng))
        manifest: Any = {name: {"size": len(b), "sha256": sha256(b).hexdigest()} for name, b in blobs.items()}
        blobs["manifest.json"] = to_json(mutate(manifest, rng) if rng.random() < 0.3 else manifest)
        for name, blob in blobs.items():
            (out / "step-0000000009" / name).write_bytes(blob)
        return out / "step-0000000009"

    def read_checkpoint(path: Path) -> None:
        source = open_weights(path)
        _ = source.config
        restore_model(source)

    def read_export(path: Path) -> None:
        source = open_weights(path)
        _ = source.config
        restore_encoder(source)

    no_layer = "export {} --layer no-such-layer --out out.safetensors"
    return {
        "export": Kind(tensors(nin), read_export, no_layer),
        "export of timm": Kind(tensors(vit), read_export, no_layer),
        "bank": Kind(
            tensors(bank.read_bytes()),
            lambda path: load_bank(path, plugin=family, size=(32, 32)),
            "pretrain -o backbone.width=0.05 --limit-train 40 --dry-run --homographies {}",
        ),
        "recipe": Kind(toml(recipe), lambda path: resolve({}, recipe=str(path)), "pretrain --dry-run --recipe {}"),
        "probe recipe": Kind(toml(probe), lambda path: resolve_probe({}, recipe=str(path)), "recipes copy {} copied.toml"),
        "checkpoint": Kind(checkpoint, read_checkpoint, no_layer),
    }


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _toml(tree: dict[str, Any], rng: random.Random) -> bytes:
    if rng.random() < 0.2:
        return mutate_bytes(tomli_w.dumps(tree).encode(rng.choice(["utf-8", "utf-16", "utf-16-le"])), rng)
    mutated = mutate(json.loads(json.dumps(tree)), rng)
    text = tomli_w.dumps(_without_none(mutated) if isinstance(mutated, dict) else {"about": _without_none(mutated) or 0})
    for name, raw in RAW.items():
        text = text.replace(name, raw)
    return text.encode(errors="surrogatepass")


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(part) for key, part in value.items() if part is not None}
    return [_without_none(part) for part in value if part is not None] if isinstance(value, list) else value


def naive_read(path: Path) -> torch.nn.Module:
    """Read an export without a check: the control, which the mutations must break."""
    blob = path.read_bytes()
    header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
    spec = ModelSpec.model_validate(json.loads(header["__metadata__"]["avt"])["model"])
    encoder = build_encoder(spec)
    encoder.load_state_dict(load(blob))
    return encoder
