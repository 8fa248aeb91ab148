"""The three commands of the README in a row, and the small commands."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from avtcli import load_encoder, load_model
from avtcli.models.weights import open_weights
from tests.support import write_cifar10

pytestmark = pytest.mark.usefixtures("few_held_out_images")


@pytest.mark.slow
def test_the_three_lines_of_the_readme_work_in_a_row(avt_process) -> None:
    write_cifar10(Path("data"), per_batch=4)
    pretrained = avt_process("pretrain --dataset cifar10 --backbone nin --max-steps 1")
    probed = avt_process("probe --layer conv2 --pool max")
    exported = avt_process("export --format safetensors")

    assert [pretrained.code, probed.code, exported.code] == [0, 0, 0], pretrained.stderr + probed.stderr + exported.stderr
    (run,) = Path("runs").iterdir()
    assert run.name.endswith("-cifar10-nin-avt")
    assert "recipe    cifar10-nin" in pretrained.stderr
    assert f"using the newest run, {run}" in probed.stderr
    assert "random top-1 %" in probed.stdout
    assert f"encoder = load_encoder('{run}/encoder.safetensors')" in exported.stdout


@pytest.mark.parametrize(("line", "code"), [("recipes list", 0), ("recipes show nowhere", 2), ("--nothing", 2)])
def test_one_of_several_processes_has_the_output_of_one_alone(avt_process, line: str, code: int) -> None:
    alone, among = avt_process(line), avt_process(line, RANK="0", WORLD_SIZE="1")

    assert among.code == code
    assert vars(among) == vars(alone)


def test_an_exported_file_gives_the_runs_own_features(avt, tiny_run: Path) -> None:
    shutil.copytree(tiny_run, "run")
    result = avt("export run --json")
    x = torch.randn(2, 1, 32, 32)

    assert set(result.json) == {"file", "format", "step", "max_abs_diff", "load_with", "card"}
    assert result.json["step"] == 9
    assert (result.json["file"], result.json["max_abs_diff"]) == ("run/encoder.safetensors", 0.0)
    assert torch.equal(load_encoder("run/encoder.safetensors")(x), load_encoder("run")(x))
    assert torch.equal(load_encoder("run")(x), load_model("run").encoder(x))
    scope: dict[str, object] = {}
    exec(result.json["load_with"], scope)
    assert torch.equal(scope["encoder"](x), load_encoder("run")(x))


@pytest.mark.parametrize(
    "line",
    ["probe {} --limit-train 40 --head knn --no-baseline", "evaluate {} --count 20", "embed {} --split test --out x.npz"],
)
def test_commands_say_which_step_their_weights_are_of(avt, tiny_run: Path, line: str) -> None:
    shutil.copytree(tiny_run, "run")
    first, last = "run/checkpoints/step-0000000000", "run/checkpoints/step-0000000009"
    for weights, step in ((first, 0), (last, 9)):
        result = avt(line.format(weights) + " --json")

        assert result.json["step"] == step
        assert re.search(rf"^weights +{re.escape(weights)}, step {step}$", result.stderr, re.MULTILINE)
        Path("x.npz").unlink(missing_ok=True)


@pytest.mark.usefixtures("exports_load_here")
def test_exporting_twice_gives_the_same_bytes_and_overwrites_nothing(avt, tiny_run: Path) -> None:
    avt(f"export {tiny_run} --out a.safetensors")
    first = Path("a.safetensors").read_bytes()

    assert avt(f"export {tiny_run} --out a.safetensors").code == 0
    assert Path("a.safetensors").read_bytes() == first
    refused = avt(f"export {tiny_run} --out a.safetensors --layer conv3")
    assert refused.code == 2
    assert "a.safetensors exists already and is not overwritten" in refused.stderr
    assert Path("a.safetensors").read_bytes() == first


@pytest.mark.usefixtures("exports_load_here")
def test_an_exported_file_states_an_encoder_alone(avt, tiny_run: Path) -> None:
    avt(f"export {tiny_run} --out a.safetensors")
    spec = open_weights("a.safetensors").spec

    assert (spec.objective, spec.transform, spec.backbone.name) == (None, None, "nin")


@pytest.mark.usefixtures("exports_load_here")
def test_an_exported_file_is_probed_and_exported_again(avt, tiny_run: Path) -> None:
    avt(f"export {tiny_run} --out a.safetensors")

    assert avt("probe a.safetensors --limit-train 40 --epochs 1 --out p.json").code == 0
    assert json.loads(Path("p.json").read_text())["run"] == "a.safetensors"
    assert avt("export a.safetensors --layer classifier --out b.safetensors").code == 0
    assert load_encoder("b.safetensors")(torch.zeros(2, 1, 32, 32)).shape == (2, 10)
    assert "a.safetensors is an exported file already: give --out" in avt("export a.safetensors").stderr


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b""), "does not parse as safetensors"),
        (lambda path: path.write_bytes(b"\x10\0\0\0\0\0\0\0garbage"), "does not parse as safetensors"),
        (lambda path: path.mkdir(), "is no run folder (it has no folder `checkpoints`) and no checkpoint"),
        (lambda path: None, "There is no run folder, checkpoint or file x.safetensors"),
        (lambda path: save_file({"a": torch.ones(1)}, path), "was not written by `avt export`"),
    ],
)
def test_what_is_not_a_run_is_refused_with_the_reason(avt, make, message: str) -> None:
    make(Path("x.safetensors"))
    result = avt("export x.safetensors --out y.safetensors")

    assert (result.code, result.stdout) == (2, "")
    assert message in result.stderr


def test_a_pickle_is_never_opened(avt) -> None:
    torch.save({"a": 1}, "x.pth")

    assert "x.pth is no safetensors file, and nothing else is read here" in avt("probe x.pth").stderr


def test_a_bank_holds_coefficients_and_their_statistics(avt) -> None:
    result = avt("gen-homographies bank.safetensors --size 32 --count 1000 --json")
    tensors = load_file("bank.safetensors")

    assert set(result.json) == {"file", "count", "size", "mean", "std", "seconds"}
    assert (tensors["coeffs"].shape, tensors["coeffs"].dtype) == ((1000, 8), torch.float32)
    torch.testing.assert_close(tensors["mean"], tensors["coeffs"].double().mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(tensors["std"], tensors["coeffs"].double().std(0), rtol=1e-5, atol=1e-6)
    assert result.json["mean"] == tensors["mean"].tolist()


def test_one_seed_gives_one_bank_and_pretraining_draws_from_it(avt) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        avt(f"gen-homographies {name}.safetensors --size 32 --count 50 --seed {seed}")
    digests = [hashlib.sha256(Path(f"{name}.safetensors").read_bytes()).hexdigest() for name in "abc"]

    assert digests[0] == digests[1] != digests[2]
    assert avt("gen-homographies a.safetensors --size 32 --count 50").code == 2  # nothing is overwritten
    line = "pretrain -o backbone.width=0.05 --limit-train 40 --max-steps 2 --homographies a.safetensors --out run"
    assert avt(line).code == 0


def test_a_bank_of_another_size_or_family_is_refused_naming_both(avt) -> None:
    avt("gen-homographies bank.safetensors --size 224 --count 50")
    line = "pretrain -o backbone.width=0.05 --homographies bank.safetensors --out run"

    assert "made for 224x224 px, this run uses 32x32 px" in avt(line).stderr
    assert "made for the family 'projective', this run uses 'translation'" in avt(f"{line} --transform translation").stderr


def test_a_bank_of_another_distribution_is_refused_and_of_another_target_taken(avt) -> None:
    avt("gen-homographies bank.safetensors --size 32 --count 50")
    line = "pretrain -o backbone.width=0.05 --limit-train 40 --max-steps 1 --homographies bank.safetensors"

    assert avt(f"{line} -o transform.target=corners --out corners").code == 0
    refused = avt(f"{line} -o transform.shift=0.05 --out run")
    assert refused.code == 2
    assert "was made with shift=0.125, this run uses shift=0.05" in refused.stderr


def test_a_file_without_valid_homographies_is_refused(avt) -> None:
    line = "pretrain -o backbone.width=0.05 --homographies bank.safetensors --out run"
    Path("bank.safetensors").write_bytes(b"nothing")
    assert "bank.safetensors does not parse as safetensors: it has no header" in avt(line).stderr
    options = {"shift": 0.125, "scale_low": 0.8, "scale_high": 1.2, "rotate": True}
    about = json.dumps({"family": "projective", "options": options, "size": 32})
    broken = {"coeffs": torch.full((5, 8), torch.nan), "mean": torch.zeros(8).double(), "std": torch.ones(8).double()}
    save_file(broken, "bank.safetensors", {"avt": about})
    assert "has 5 rows that are not finite or fold the image" in avt(line).stderr
    save_file({**broken, "coeffs": torch.zeros(5, 6)}, "bank.safetensors", {"avt": about})
    assert "has coeffs of shape (5, 6), expected (N, 8)" in avt(line).stderr


def test_recipes_are_listed_shown_and_copied(avt) -> None:
    assert "cifar10-nin" in avt("recipes list").stdout
    assert "# 5e-3 * 0.2" in avt("recipes show cifar10-nin").stdout
    assert avt("recipes copy cifar10-nin mine.toml").code == 0
    assert Path("mine.toml").read_text().strip() == avt("recipes show cifar10-nin").stdout.strip()
    assert "mine.toml exists already" in avt("recipes copy cifar10-nin mine.toml").stderr


def python(*args: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, env={**os.environ, **variables}, check=True)


def test_names_are_completed_without_importing_a_plugin() -> None:
    words = {"_AVT_COMPLETE": "complete_bash", "COMP_WORDS": "avt pretrain --dataset fa", "COMP_CWORD": "3"}
    code = (
        "import sys; from avtcli.cli.app import app\n"
        "try:\n    app(prog_name='avt')\nfinally:\n    assert 'avtplugins' not in sys.modules"
    )

    assert python("-c", code, **words).stdout.split() == ["fashion-mini", "fashion-mnist", "fashion-mnist:"]


def test_the_list_of_commands_imports_no_command_and_no_pydantic() -> None:
    code = (
        "import sys; from avtcli.cli.app import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "known = ('avtcli.cli.app', 'avtcli.cli.layout')\n"
        "print([m for m in sys.modules if m == 'pydantic' or m.startswith('avtcli.cli.') and m not in known])"
    )

    assert python("-c", code).stdout.splitlines()[-1] == "[]"


def test_no_arguments_give_the_help_and_python_m_is_the_same(avt) -> None:
    result = avt("")

    assert "Usage: avt" in result.stdout
    assert python("-m", "avtcli", "--version").stdout == avt("--version").stdout == f"avt {version('avtcli')}\n"


def test_what_a_library_prints_does_not_reach_stdout() -> None:
    code = (
        "import os, subprocess\n"
        "from avtcli.cli.console import results_alone_on_stdout, say_json\n"
        "with results_alone_on_stdout():\n"
        "    print('python'); os.write(1, b'c code\\n'); subprocess.run(['echo', 'child'])\n"
        "say_json({'a': 1})\n"
    )
    ended = python("-c", code)

    assert json.loads(ended.stdout) == {"a": 1}
    assert sorted(ended.stderr.split("\n")) == ["", "c code", "child", "python"]


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_pretraining_beats_random_weights_in_the_demo(avt_process) -> None:
    result = avt_process("demo --json")

    assert result.code == 0, result.stderr
    trained, random = result.json["probe"]["results"][0], result.json["probe"]["baseline"][0]
    assert trained["top1"] > random["top1"]
    assert result.json["pretrain"]["mace_px"] < 20  # the constant predictor's is 23.5
    assert Path(result.json["export"]["file"]).is_file()
