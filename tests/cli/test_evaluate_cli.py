"""`avt evaluate` from the command line: output, files and refusals."""

import json
import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import save_file

from avtcli.cli.evaluate import _best
from avtcli.models.weights import open_weights, restore_encoder
from avtcli.storage.files import to_metadata
from avtplugins.transforms.projective import projective

FIELDS = {
    *("run", "dataset", "transform", "count", "mace_px", "mse_normalised", "r2", "r2_per_parameter", "nll", "calibration"),
    *("right_turns", "mace_px_right_turn", "by_class"),
    *("step", "retrieval", "accuracy", "baselines", "ridge", "protocol"),
}


@pytest.fixture
def run(tiny_run: Path) -> Path:
    return Path(shutil.copytree(tiny_run, "run"))


def test_the_json_has_the_documented_fields_and_is_saved_twice(avt, run: Path) -> None:
    result = avt("evaluate run --count 20 --json --out here/e.json")
    figures = result.json

    assert result.code == 0
    assert set(figures) == FIELDS
    assert {"mrr", "hit1", "hit5", "bank"} <= set(figures["retrieval"])
    assert set(figures["calibration"]) == {"levels", "pooled", "per_parameter", "temperature", "picture"}
    assert set(figures["baselines"]) == {"identity", "constant", "rotation_oracle"}
    assert all(set(baseline) == {"mace_px", "mse_normalised"} for baseline in figures["baselines"].values())
    fit = {"features", "penalty", "mace_px", "right_turns", "mace_px_right_turn", "mse_normalised", "r2", "r2_per_parameter"}
    (ridge,) = figures["ridge"]
    assert set(ridge) == {"layer", "random", *fit}
    assert set(ridge["random"]) == fit
    assert figures == json.loads(Path("here/e.json").read_text()) == json.loads(Path("run/evaluate.json").read_text())


def test_no_predictor_that_sees_no_image_is_the_best() -> None:
    names = ("decoder", "ridge on conv2", "constant", "identity", "90-degree rotation oracle")
    errors = [[name, f"{9 - i}", "1", "0.1"] for i, name in enumerate(names)]
    shares = [[name, "-", "1", f"0.{8 - i}"] for i, name in enumerate(names)]

    assert (_best(errors), _best(shares), _best(errors[2:])) == (1, 0, None)


def test_the_tables_compare_decoder_and_ridge_with_baselines(avt, run: Path) -> None:
    result = avt("evaluate run --count 20 --layer conv3,conv1 --verbose")
    figures, lines = json.loads((run / "evaluate.json").read_text()), result.stdout.splitlines()
    turns = [f"{figures['right_turns']:.3f}", f"{figures['mace_px_right_turn']:.2f}"]
    layers = [f"ridge on {layer}{weights}" for weights in ("", ", random weights") for layer in ("conv3", "conv1")]

    assert lines[:2] == ["run  run, step 9", ""]
    assert lines.pop(2).startswith("Transformation predicted from two views: mean corner error (MACE) in px; MSE and R2 of ")
    assert re.split("  +", lines[2].strip()) == ["MACE px", "right turns", "MACE px at these", "MSE", "R2"]
    assert [re.split("  +", line)[0] for line in lines[3:11]] == [  # of 20 images none is called the best
        *("decoder", *layers, "90-degree rotation oracle", "constant", "identity")
    ]
    mse = [f"{figures['mse_normalised']:.3f}", f"{figures['r2']:.3f}"]
    assert lines[3].split()[1:] == [f"{figures['mace_px']:.2f}", *turns, *mse]
    assert lines[10].split()[-1] == "-"
    title = "By parameter (u, v: the corner to which each corner is turned, px; x, y: its offset from there, px): "
    assert lines.pop(12) == f"{title}R2, and share inside the decoder's intervals"
    assert lines[12].split() == [*"decoder R2 conv3 R2 conv1 R2 inside 50% inside 80% inside 95%".split()]
    assert [line.split()[0] for line in lines[13:30]] == [*projective().names, "pooled"]
    by_class = lines.index("class        images  MACE px  right turns  MACE px at these") + 1
    assert [re.split("  +", line)[:2] for line in lines[by_class : by_class + len(figures["by_class"])]] == [
        [name, str(own["images"])] for name, own in figures["by_class"].items()
    ]
    temperature = figures["calibration"]["temperature"]
    table = lines.index("temperature     nll  calibration error  inside 50%  inside 80%  inside 95%") + 1
    for line, name, row in zip(
        lines[table : table + 2],
        ("none", f"{temperature['temperature']:.3f}"),
        (temperature["before"], temperature["after"]),
        strict=True,
    ):
        assert line.split()[:3] == [name, f"{row['nll']:.3f}", f"{row['calibration_error']:.3f}"]
        assert line.split()[4] == f"{row['coverage'][15]:.3f}"
    assert f"retrieval  mean reciprocal rank {figures['retrieval']['mrr']:.3f} (chance 0.090), ranked first" in result.stdout
    assert "among 50 versions of each of 1 images" in result.stdout
    assert f"nll        {figures['nll']:.3f} nats per pair (negative" in result.stdout
    assert "images             20 of the 1000 test images of fashion-mini" in result.stdout
    assert "target             u0 (px), v0 (px), u1 (px), v1 (px), u2 (px)" in result.stdout


def test_every_table_has_a_title_and_rows_by_parameter_are_for_verbose(avt, run: Path) -> None:
    blocks = [block.splitlines() for block in avt("evaluate run --count 20").stdout.split("\n\n")]
    titles = ["Transformation predicted from", "The same by class", "Calibration: share of targets"]

    assert [block[0].startswith(title) for block, title in zip(blocks[1:4], titles, strict=True)] == [True] * 3
    assert not any(line.startswith(("u0", "pooled")) for block in blocks for line in block)


def test_exported_files_and_backbones_by_name_have_a_ridge_only(avt, run: Path) -> None:
    source = open_weights(run)
    about = {"model": source.spec.model_dump(mode="json", exclude_none=True), "config": source.about["config"]}
    save_file(restore_encoder(source).state_dict(), "a.safetensors", metadata=to_metadata(about))
    by_file = avt("evaluate a.safetensors --count 20")
    by_name = avt(
        "evaluate --backbone nin -o backbone.width=0.05 --dataset fashion-mini --transform rotation --count 20 --json"
    )

    assert (by_file.code, by_name.code) == (0, 0)
    assert "decoder not evaluated: a.safetensors holds an encoder only" in by_file.stderr
    assert "decoder R2" not in by_file.stdout
    assert "\n\n\n" not in by_file.stdout
    assert "retrieval  " not in by_file.stdout.split("images  ")[0]
    assert by_name.json["step"] is None
    assert by_name.json["transform"] == "rotation"
    assert (by_name.json["mace_px"], by_name.json["ridge"][0]["layer"]) == (None, "conv2")
    assert by_name.json["protocol"]["weights"] == "random"
    assert not list(Path().glob("evaluate*"))


@pytest.mark.parametrize("command", ["evaluate run --count 20", "probe run --limit-train 80 --head knn"])
def test_calibrated_and_random_statistics_are_printed_in_the_protocol(avt, run: Path, command: str) -> None:
    plain, calibrated = avt(command), avt(f"{command} --calibrate-bn")

    assert (plain.code, calibrated.code) == (0, 0)
    words = "BatchNorm statistics of 80 training images"
    for result, asked in ((plain, False), (calibrated, True)):
        assert f"random weights, {words}" in result.stdout
        assert bool(re.search(rf"^calibrated +{words}$", result.stdout, re.MULTILINE)) == asked


def test_an_option_of_the_transformation_overrides_the_runs(avt, run: Path) -> None:
    result = avt("evaluate run --count 20 -o transform.shift=0.05 --json")

    assert float(result.json["protocol"]["transform"]["shift"]) == 0.05
    assert "run was trained on projective (shift=0.125), not on projective (shift=0.05)" in result.stderr


def test_a_photometric_run_shows_dashes_for_pixels(avt) -> None:
    avt("pretrain --transform photometric --max-steps 2 --limit-train 40 --batch-size 16 -o backbone.width=0.05 --out run")
    result = avt("evaluate run --count 20")

    assert result.stdout.splitlines()[4].split()[:2] == ["decoder", "-"]
    assert "identity" not in [line.split("  ")[0] for line in result.stdout.splitlines()]


def test_the_accuracy_of_a_rotnet_run_states_of_what(avt) -> None:
    made = "--transform rotation --objective rotnet --max-steps 1 --limit-train 40 --batch-size 16 -o backbone.width=0.05"
    avt(f"pretrain {made} --eval-every 0 --out run")
    (line,) = [line for line in avt("evaluate run --count 20").stdout.splitlines() if line.startswith("accuracy")]

    assert line.endswith("% of the pairs: the class of the rotation (chance 25 %)")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "run --count 2000",
            "--count 2000 asks for more images than the 1000 of the test split of 'fashion-mini'. Give at most 1000.",
        ),
        ("run --layer conv9", "no layer 'conv9'. Did you mean"),
        ("run --transform affin", "No transform is called 'affin'. Did you mean 'affine'?"),
        ("run --backbone nin", "Both a run, run, and --backbone nin were given"),
        ("run -o backbone.width=1", "`-o backbone.width` needs the name of the backbone: give --backbone too"),
        ("run -o objective.x=1", "-o takes no kind 'objective' here. Kinds: backbone, dataset, transform, augment."),
        ("run -o augment.flip=false", "`-o augment.flip` has no effect here: images are not padded or flipped"),
        ("run --out run/config.toml", "run/config.toml exists already and is not overwritten"),
        ("nothing", "There is no run folder, checkpoint or file nothing"),
    ],
)
def test_a_usage_error_is_one_message_and_writes_nothing(avt, run: Path, line: str, message: str) -> None:
    before = sorted(path.name for path in run.iterdir())
    result = avt(f"evaluate {line}")

    assert result.code == 2
    assert message in result.stderr
    assert sorted(path.name for path in run.iterdir()) == before


@pytest.mark.parametrize("line", ["probe {} --head knn --no-baseline --limit-train 100", "evaluate {} --count 20"])
def test_a_run_that_cannot_be_written_is_measured_all_the_same(
    avt, tiny_run: Path, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path for path in tiny_run.rglob("*")}
    monkeypatch.setattr("avtcli.storage.run_folders.why_unwritable", lambda folder: "Read-only file system")
    result = avt(f"{line.format(tiny_run)} --device cpu --out result.json --json")

    assert result.code == 0, result.stderr
    assert json.loads(Path("result.json").read_text()) == result.json
    assert f"not saved in {tiny_run}: Read-only file system. Use --out to save" in result.stderr
    assert {path for path in tiny_run.rglob("*")} == before
