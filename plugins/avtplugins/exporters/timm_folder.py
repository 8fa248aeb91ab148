"""A folder that timm loads by itself."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from avtcli.contracts import Exporter
from avtcli.errors import AvtError
from avtcli.models.encoder import Encoder
from avtplugins.backbones.timm import VECTOR_TAP, TimmBackbone


class TimmFolder(Exporter):
    """The timm model with its weights, in timm's layout of a local folder; the loaded model returns its pooled features."""

    suffix = ""
    library = "timm"

    def default_layer(self, encoder: Encoder) -> str:
        """Return the pooled feature, which is what the model itself returns."""
        return VECTOR_TAP if isinstance(encoder.backbone, TimmBackbone) else encoder.output

    def check(self, encoder: Encoder, layer: str) -> None:
        """Refuse what is no timm model, and a layer inside it."""
        if not isinstance(encoder.backbone, TimmBackbone):
            raise AvtError("The format 'timm' holds models of timm, and this backbone is none. Take --format torch.")
        if layer != VECTOR_TAP:
            raise AvtError(
                f"The format 'timm' holds whole models, found the layer {layer}. Take --format safetensors, onnx or pt2."
            )

    def write(self, encoder: Encoder, path: Path, about: Mapping[str, Any]) -> None:
        """Write model.safetensors and config.json."""
        backbone = encoder.backbone
        assert isinstance(backbone, TimmBackbone)
        path.mkdir()
        tensors = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        (path / "config.json").write_text(json.dumps(_config(backbone, about), indent=2) + "\n")

    def load_with(self, path: Path) -> tuple[str, ...]:
        """Return the lines that load the model; with `num_classes=N` it gets a new classifier."""
        return "import timm", f"encoder = timm.create_model({f'local-dir:{path}'!r}, pretrained=True).eval()"

    def load_code_with(self, path: Path, encoder: Encoder) -> tuple[str, ...]:
        """Return the lines that load the model's features; some models of timm have none."""
        assert isinstance(encoder.backbone, TimmBackbone)
        info: Any = encoder.backbone.model.feature_info
        place = [feature["module"] for feature in info].index(encoder.backbone.code_tap)
        options = f"pretrained=True, features_only=True, out_indices=[{place}]"
        return (
            "import timm",
            f"features = timm.create_model({f'local-dir:{path}'!r}, {options}).eval()",
            "encoder = lambda images: features(images)[0]",
        )


def _config(backbone: TimmBackbone, about: Mapping[str, Any]) -> dict[str, Any]:
    """What timm builds the model from, and how it prepares images for it."""
    own: Any = backbone.model.pretrained_cfg
    spec, augment = about["model"], (about["config"] or {}).get("augment", {})
    channels, resize = spec["channels"], augment.get("resize")
    prepared = {key: list(spec[key]) * (channels // len(spec[key])) for key in ("mean", "std")}
    # timm resizes to the crop divided by its share, rounded down
    share = spec["size"][0] / (resize + 0.5) if resize and augment.get("crop") else 1.0
    prepared |= {"input_size": [channels, *spec["size"]], "fixed_input_size": own["fixed_input_size"], "crop_pct": share}
    # of other than 3 channels, older versions of timm would convert the stem once more
    layers = {"first_conv": own["first_conv"] if channels == 3 else None, "classifier": own["classifier"]}
    return {
        "architecture": own["architecture"],
        "num_classes": 0,
        "num_features": backbone.vector_dim,
        "model_args": dict(backbone.arguments),
        "pretrained_cfg": {**prepared, **layers, "interpolation": "bilinear", "num_classes": 0},
    }


def timm_folder() -> Exporter:
    """A folder that `timm.create_model("local-dir:PATH", pretrained=True)` loads: the whole timm model."""
    return TimmFolder()
