"""The probe: where its features come from, how its heads are trained, what decides, and what it reports."""

import json
import shutil
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from avtcli.config.components import Augment, Plugin
from avtcli.config.probe_config import ProbeConfig
from avtcli.config.resolution import resolve_probe
from avtcli.contracts import Backbone, Code, ImageData, MemorySplit
from avtcli.data.epoch_table import sample_uniforms
from avtcli.data.resident_images import ResidentImages
from avtcli.errors import AvtError
from avtcli.features import cache_storage, evaluation_target
from avtcli.features.cache_storage import choose_storage
from avtcli.features.feature_cache import CachedFeatures, cache_bytes, extract
from avtcli.features.feature_reader import Feature, FeatureReader, ForwardedImages, LabelledImages, eval_batch_size
from avtcli.geometry.cropping import crop_and_flip
from avtcli.models.encoder import Encoder
from avtcli.models.weights import Weights, open_weights, restore_encoder
from avtcli.probing import encoder_probing
from avtcli.probing.head import TrainedHead
from avtcli.probing.head_training import HeadTraining, RowSubset, rate_of, train_heads
from avtcli.probing.heads import resolve_head
from avtcli.probing.joint_heads import HeadSpec
from avtcli.probing.probe import probe
from avtcli.probing.probe_setup import subset_rows
from avtcli.runtime.devices import Context
from avtcli.seeding import keyed_generator, seed_of
from tests.support import run_probe

CPU = torch.device("cpu")
FIXED: dict[str, Any] = {
    "augmented": True,
    "augment": {"padding": 4},
    "schedule": {"epochs": 2, "pieces": [{"start": 0, "rate": 0.1}, {"start": 1, "rate": 0.01}]},
    "limit_train": 60,
    "batch_size": 16,
    "baseline": False,
    "samples": 2,
    "layers": ("conv2",),
}
"""The published kind of protocol, in small."""
OURS: dict[str, Any] = {"epochs": 2, "limit_train": 60, "baseline": False, "rates": (0.1, 0.01)}


def pixels(count: int = 12) -> Tensor:
    return torch.randint(0, 256, (count, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


def reader_of(source: Weights, layers: list[str], *, samples: int = 0, augment: Augment | None = None) -> ForwardedImages:
    wanted, augment = [feature(layer) for layer in layers], augment or Augment(padding=4)
    return ForwardedImages(restore_encoder(source), labelled("train"), wanted, augment=augment, samples=samples, seed=7)


def labelled(part: str) -> LabelledImages:
    images = ResidentImages(MemorySplit(pixels(), None, prefix="x"), torch.arange(12), device=CPU)
    return LabelledImages(images, torch.arange(12) % 3, part, (32, 32))


def feature(layer: str) -> Feature:
    return Feature(layer, "none", 4)


ROWS = torch.tensor([3, 9, 0, 5])


# where the features come from


def read_conv2(reader: FeatureReader, epoch_key: tuple[int, int] | None) -> Tensor:
    return next(reader.read_batches([ROWS], epoch_key=epoch_key))[feature("conv2")]


def test_augmented_features_are_those_of_the_cropped_and_flipped_images(source: Weights) -> None:
    reader, encoder = reader_of(source, ["conv1", "conv3"]), restore_encoder(source)
    (read,) = reader.read_batches([ROWS], epoch_key=(4, 2))
    x = crop_and_flip(pixels()[ROWS], sample_uniforms(4, 2, 12)[ROWS], crop=(32, 32), padding=4)
    with torch.no_grad():
        expected = encoder.features(encoder.normalise(x), ["conv1", "conv3"])

    for name, values in read.items():
        torch.testing.assert_close(values, expected[name.layer])
        assert reader.shapes[name] == tuple(values.shape[1:])


def test_each_epoch_and_seed_has_other_crops_and_evaluation_has_none(source: Weights) -> None:
    reader = reader_of(source, ["conv2"])
    read = {key: read_conv2(reader, key) for key in ((0, 0), (0, 1), (1, 0), None)}
    (kept,) = extract(reader, task="x", on_event=lambda event: None).values()
    encoder = restore_encoder(source)

    assert len({values.sum().item() for values in read.values()}) == 4
    torch.testing.assert_close(read[None], kept[ROWS])
    with torch.no_grad():
        torch.testing.assert_close(kept, encoder(encoder.normalise(pixels())))


def test_cached_features_are_those_of_the_images(source: Weights, tmp_path: Path) -> None:
    reader = reader_of(source, ["conv1", "classifier", "conv2"])
    reader.eval_batch = 5
    (expected,) = reader.read_batches([ROWS], epoch_key=None)
    for storage in (CPU, tmp_path):
        features = extract(reader, storage=storage, task="x", on_event=lambda event: None)
        assert sum(own.nbytes for own in features.values()) == cache_bytes(reader)
        (found,) = CachedFeatures(features, reader.labels, device=CPU).read_batches([ROWS], epoch_key=None)
        for name, values in found.items():
            torch.testing.assert_close(values, expected[name])
            assert features[name].movedim(1, -1).is_contiguous()  # flattened without a copy


def test_the_code_is_the_mean_of_samples_and_later_layers_see_the_first(source: Weights) -> None:
    reader, encoder = reader_of(source, ["conv1", "conv2", "conv3"], samples=5), restore_encoder(source)
    encoder.noise_scale = reader.encoder.noise_scale = 0.5
    read = {name.layer: values for name, values in next(reader.read_batches([ROWS], epoch_key=(4, 2))).items()}
    generator = keyed_generator(4, 2, "samples", "train", 0)
    noise = [torch.randn(4, 10, 8, 8, generator=generator) for _ in range(5)]
    x = encoder.normalise(crop_and_flip(pixels()[ROWS], sample_uniforms(4, 2, 12)[ROWS], crop=(32, 32), padding=4))
    with torch.no_grad():
        taps = encoder.features(x, ["conv1", "conv2", "conv2.log_var"])
        std = 0.5 * (taps["conv2.log_var"] / 2).exp()
        samples = torch.stack([taps["conv2"] + std * eps for eps in noise])
        later = encoder.features(x, ["conv3"], noise[0])["conv3"]

    torch.testing.assert_close(read["conv1"], taps["conv1"])
    torch.testing.assert_close(read["conv2"], samples.mean(0))
    torch.testing.assert_close(read["conv3"], later)
    assert not torch.allclose(read["conv2"], taps["conv2"], atol=1e-3)


def test_evaluation_repeats_its_samples_and_training_does_not(source: Weights) -> None:
    reader = reader_of(source, ["conv2"], samples=2, augment=Augment(flip=False))
    reader.encoder.noise_scale = 0.5
    first, again, one, two = (read_conv2(reader, key) for key in (None, None, (0, 0), (0, 1)))

    assert torch.equal(first, again)
    assert not torch.allclose(first, one)
    assert not torch.allclose(one, two)


def test_an_encoder_without_noise_has_its_code_for_any_number_of_samples(source: Weights) -> None:
    plain = restore_encoder(source)
    plain.log_var = None
    data, wanted = labelled("test"), [feature("conv2")]
    readers = (ForwardedImages(plain, data, wanted, augment=Augment(), samples=n, seed=0) for n in (0, 5))

    assert torch.equal(*(read_conv2(reader, None) for reader in readers))


def test_one_forward_of_the_encoder_a_batch_gives_all_layers(source: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, calls = reader_of(source, ["conv1", "conv2", "conv3", "conv4"], samples=5), []
    encode = reader.encoder.encode
    monkeypatch.setattr(reader.encoder, "encode", lambda *args: (calls.append(1), encode(*args))[1])
    list(reader.read_batches([ROWS, ROWS], epoch_key=(0, 0)))

    assert len(calls) == 2


def test_features_above_a_quarter_of_memory_are_on_disk_and_the_same(
    source: Weights, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    in_memory = run_probe(source, **OURS)
    needed = 4 * (60 + 1000) * 10 * 16
    monkeypatch.setattr(cache_storage, "memory_bytes", lambda: 4 * needed - 1)
    monkeypatch.setattr(cache_storage.tempfile, "tempdir", str(tmp_path))
    stores = []
    monkeypatch.setattr(encoder_probing, "extract", lambda *a, **k: (stores.append(k["storage"]), extract(*a, **k))[1])
    on_disk = run_probe(source, **OURS)

    assert stores == [tmp_path] * 2
    assert on_disk.results == in_memory.results
    assert list(tmp_path.iterdir()) == []  # the files have lost their names


def test_features_that_fit_neither_in_memory_nor_on_disk_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_storage, "memory_bytes", lambda: 8_000_000_000)

    assert choose_storage(2_000_000_000) == CPU
    with pytest.raises(AvtError, match=r"GB free\. Give a smaller --count, or set TMPDIR"):
        choose_storage(9 * 10**18, advice="Give a smaller --count")
    message = r"take 9000000000 GB, more than 25% of the memory, and .* GB free\. Give fewer"
    with pytest.raises(AvtError, match=message):
        choose_storage(9 * 10**18)


@pytest.mark.parametrize(("room", "expected"), [(True, torch.device("cuda")), (False, CPU)])
def test_features_are_cached_on_a_gpu_that_has_room(
    monkeypatch: pytest.MonkeyPatch, room: bool, expected: torch.device
) -> None:
    monkeypatch.setattr(cache_storage, "has_room", lambda device, count: room)

    assert choose_storage(1000, device=torch.device("cuda")) == expected
    assert choose_storage(1000, device=CPU) == CPU


@pytest.mark.parametrize(
    ("place", "side", "expected"), [("cuda", 32, 2000), ("cuda", 112, 1000), ("cuda", 448, 250), ("cpu", 32, 250)]
)
def test_evaluation_reads_more_small_images_at_once_on_a_gpu(place: str, side: int, expected: int) -> None:
    images = ResidentImages(MemorySplit(pixels(), None, prefix="x"), torch.arange(12), device=CPU)
    images.images = SimpleNamespace(device=torch.device(place))  # type: ignore[assignment]

    assert eval_batch_size(images, (side, side)) == expected


class OfOneSize(Backbone):
    """Takes images of 8x8 px alone."""

    def __init__(self) -> None:
        super().__init__()
        self.full = nn.Linear(64, 5)
        self.taps, self.code_tap, self.vector_dim = {"map": 1}, "map", 5

    def forward(self, x: Tensor, code: Code, want: Collection[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        return self.full(code(x).flatten(1)), {}


def test_images_of_a_size_that_the_backbone_cannot_take_are_refused() -> None:
    encoder = Encoder(OfOneSize(), pixel_mean=(0.5,), pixel_std=(0.5,)).eval()
    with pytest.raises(
        AvtError,
        match=r"The backbone does not take images of 32x32 px\. Give the size that it was trained on",
    ):
        ForwardedImages(encoder, labelled("test"), [], augment=None, samples=0, seed=0)


# how the heads are trained


SHAPES = {"a": (3, 2, 2), "vector": (5,), "b": (3, 2, 2)}


def kept(*layers: str, count: int = 33) -> CachedFeatures:
    generators = {name: torch.Generator().manual_seed(seed) for seed, name in enumerate(SHAPES, 1)}
    values = {n: torch.randn(count, *SHAPES[n], generator=generators[n]).movedim(1, -1).contiguous() for n in layers or ("a",)}
    return CachedFeatures({feature(n): own.movedim(-1, 1) for n, own in values.items()}, torch.arange(count) % 4, device=CPU)


def train(
    config: ProbeConfig, *, specs: list[HeadSpec] | None = None, seed: int = 3, layers: Sequence[str] = ("a",)
) -> list[list[tuple[float, float]]]:
    part = RowSubset(kept(*layers), torch.arange(33))
    training = HeadTraining(head_of(config), config, 4, Context(CPU, seed=seed), "x")
    return train_heads(part, part, specs or [HeadSpec(feature("a"), None)], training)


def head_of(config: ProbeConfig) -> TrainedHead:
    head = resolve_head(config.head)
    assert isinstance(head, TrainedHead)
    return head


@pytest.mark.parametrize("kind", ["mlp2", "linear"])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_training_is_that_of_plain_torch(name: str, kind: str) -> None:
    """Written out: keyed weights and order, batches of 16 and 17 of 33, fixed rates; measured in eval mode."""
    pieces = [{"start": 0, "rate": 0.1}, {"start": 2, "rate": 0.01}]
    settings = {"head": kind, "batch_size": 16, "schedule": {"epochs": 3, "pieces": pieces}}
    config = resolve_probe({**settings, "optimizer": {"name": name, "weight_decay": 5e-4}}, recipe=None)
    reader = kept()
    features, labels = next(iter(reader.features.values())), reader.labels
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(3, "head"))
        head = head_of(config).build("a", (3, 2, 2), 4)
    optimizer = {
        "sgd": lambda: torch.optim.SGD(head.parameters(), momentum=0.9, nesterov=True, weight_decay=5e-4),
        "adamw": lambda: torch.optim.AdamW(head.parameters(), weight_decay=5e-4),
    }[name]()
    expected = []
    for epoch, rate in enumerate([0.1, 0.1, 0.01]):
        optimizer.param_groups[0]["lr"] = rate
        order = torch.randperm(33, generator=keyed_generator(3, "order", epoch))
        for rows in (order[:16], order[16:]):
            optimizer.zero_grad()
            functional.cross_entropy(head(features[rows]), labels[rows]).backward()
            optimizer.step()
        logits = head.eval()(features)
        expected.append(100 * (logits.argmax(1) == labels).double().mean().item())
        head.train()

    (curve,) = train(config)
    assert [top1 for top1, _ in curve] == pytest.approx(expected)
    assert [top5 for _, top5 in curve] == [100.0] * 3  # four classes


def test_heads_that_are_trained_together_are_those_trained_alone() -> None:
    config = ProbeConfig(epochs=4, batch_size=16)
    specs = [HeadSpec(feature("a"), rate) for rate in (0.3, 0.01)]
    together = train(config, specs=specs)
    alone = [train(config, specs=[spec])[0] for spec in specs]

    assert together == alone
    assert together[0] != together[1]
    assert [len(curve) for curve in together] == [1, 1]  # without a schedule, test is looked at once


@pytest.mark.parametrize("head", ["linear", "mlp2"])
@pytest.mark.parametrize("layers", [("a", "b"), ("b", "vector", "a")])
def test_heads_give_the_same_figures_in_whatever_order_they_are_asked_for(head: str, layers: tuple[str, ...]) -> None:
    pieces = [{"start": 0, "rate": 0.1}]
    config = resolve_probe({"head": head, "batch_size": 16, "schedule": {"epochs": 4, "pieces": pieces}}, recipe=None)
    specs = [HeadSpec(feature(name), None) for name in layers]
    alone = [train(config, specs=[spec], layers=(spec.feature.layer,))[0] for spec in specs]

    assert train(config, specs=specs, layers=layers) == alone
    assert train(config, specs=[*specs[::-1], *specs[::-1]], layers=layers) == [*alone[::-1], *alone[::-1]]
    assert len({tuple(curve) for curve in alone}) == len(layers)


def test_a_rate_is_chosen_after_two_hundred_steps_in_full_epochs() -> None:
    cases = [(10_000, 100, 128), (10_000, 100, 5000), (180, 200, 128), (18, 100, 128), (180, 8, 128), (90_000, 11, 128)]
    found = [ProbeConfig(epochs=n, batch_size=batch).for_lr_search(images).total_epochs for images, n, batch in cases]

    assert found == [3, 100, 100, 100, 8, 1]


def test_layers_that_are_probed_together_give_what_each_gives_alone(source: Weights) -> None:
    together = run_probe(source, **{**FIXED, "layers": ("conv1", "conv3")})
    alone = [run_probe(source, **{**FIXED, "layers": (layer,)}).results[0] for layer in ("conv1", "conv3")]

    assert together.results == alone


def test_pieces_are_constant_within_an_epoch_and_shrink_with_the_epochs() -> None:
    config = resolve_probe({"epochs": 20}, recipe="cifar10-mlp2")
    rates = [rate_of(config, None, epoch=epoch, progress=0.0) for epoch in range(20)]

    assert rates == [0.1] * 10 + [0.01] * 5 + [0.001] * 5


def test_a_schedule_without_pieces_and_a_chosen_peak_fall_along_a_cosine() -> None:
    fixed = resolve_probe({"schedule": {"rate": 0.2, "warmup": 0.5}}, recipe=None)

    assert rate_of(fixed, None, epoch=0, progress=0.25) == pytest.approx(0.1)
    assert rate_of(fixed, None, epoch=0, progress=0.75) == pytest.approx(0.1)
    assert rate_of(ProbeConfig(), 0.2, epoch=0, progress=0.0) == 0.2
    assert rate_of(ProbeConfig(), 0.2, epoch=0, progress=0.5) == pytest.approx(0.1)


# what decides, and what is reported


class Recorder:
    """Stands in for `train_heads`: records the calls and returns made-up curves."""

    def __init__(self, curves: dict[float | None, list[tuple[float, float]]]) -> None:
        self.curves, self.calls, self.epochs = curves, list[Any](), list[int]()

    def __call__(self, train: RowSubset, test: RowSubset, specs: list[HeadSpec], training: HeadTraining) -> list[Any]:
        self.calls.append((train, test, specs))
        self.epochs.append(training.config.total_epochs)
        return [self.curves[spec.peak] for spec in specs]


def test_a_schedule_trains_once_and_reports_the_last_epoch(source: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder({None: [(10.0, 20.0), (50.0, 60.0), (30.0, 40.0)]})
    monkeypatch.setattr(encoder_probing, "train_heads", recorder)
    (head,) = run_probe(source, **FIXED).results

    ((train_part, test_part, _),) = recorder.calls
    assert train_part.rows.tolist() == list(range(60))
    assert len(test_part.rows) == 1000
    assert (head.top1, head.top5, head.val_top1, head.top1_best_test_epoch) == (30.0, 40.0, None, 50.0)


@pytest.mark.parametrize("augmented", [False, True])
def test_the_rate_is_chosen_on_held_out_images_and_test_is_seen_once(
    source: Weights, monkeypatch: pytest.MonkeyPatch, augmented: bool
) -> None:
    recorder = Recorder({0.1: [(90.0, 90.0), (40.0, 60.0)], 0.01: [(10.0, 20.0), (50.0, 60.0)]})
    monkeypatch.setattr(encoder_probing, "train_heads", recorder)
    monkeypatch.setattr("avtcli.config.probe_config.LR_SEARCH_STEPS", 1)
    (head,) = run_probe(source, **{**OURS, "epochs": 11}, augmented=augmented).results

    assert recorder.epochs == [1, 11]  # a step to choose
    (fit, held, both), (complete, test, chosen) = recorder.calls
    assert fit.reader is held.reader is complete.reader
    assert test.reader is not complete.reader
    assert (len(fit.rows), len(held.rows)) == (30, 30)
    assert sorted([*fit.rows.tolist(), *held.rows.tolist()]) == complete.rows.tolist() == list(range(60))
    assert ([spec.peak for spec in both], [spec.peak for spec in chosen]) == ([0.1, 0.01], [0.01])
    assert (head.val_top1, head.top1, head.top1_best_test_epoch) == (50.0, 50.0, None)


def test_test_features_computed_each_epoch_give_the_same(source: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    held = run_probe(source, **FIXED)
    monkeypatch.setattr(encoder_probing, "CACHED_TEST_BYTES", 0)

    assert run_probe(source, **FIXED).results == held.results


def test_probing_again_gives_the_same_figures_and_another_seed_others(source: Weights) -> None:
    first, again = (asdict(run_probe(source, **{**FIXED, "baseline": True})) for _ in range(2))
    other = run_probe(source, **FIXED, seed=1)

    assert first == again
    assert [head["layer"] for head in first["baseline"]] == ["conv2"]
    assert first["baseline"] != first["results"]
    assert other.results[0].top1 != first["results"][0]["top1"]


@pytest.mark.parametrize("protocol", [OURS, FIXED])
def test_every_layer_number_of_shots_and_seed_has_its_result(source: Weights, protocol: dict[str, Any]) -> None:
    settings = {**protocol, "limit_train": 500, "layers": ("conv1", "conv2"), "shots": (2, 1), "seeds": 2, "seed": 5}
    result = run_probe(source, **settings, head="mlp1")

    assert [(head.layer, head.shots, head.seed) for head in result.results] == [
        (layer, shots, seed) for layer in ("conv1", "conv2") for shots in (2, 1) for seed in (5, 6)
    ]
    assert all(head.head == "mlp1" and head.pool == "none" for head in result.results)


def test_shots_are_images_of_each_class_fewer_among_more() -> None:
    labels = torch.arange(200) % 7
    few, many, others = (subset_rows(labels, shots=n, seed=seed) for n, seed in ((3, 0), (10, 0), (3, 1)))

    assert torch.bincount(labels[few]).tolist() == [3] * 7
    assert torch.bincount(labels[many]).tolist() == [10] * 7
    assert set(few.tolist()) < set(many.tolist())
    assert few.tolist() != others.tolist()
    assert subset_rows(labels, seed=0).tolist() == list(range(200))


def test_settings_are_refused_before_features_are_read(source: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_probing, "extract", None)  # whoever reads features fails
    with pytest.raises(AvtError, match="--shots 90 asks for 90 training images of each class"):
        run_probe(source, **OURS, shots=(1, 90))
    with pytest.raises(AvtError, match="The head 'conv' needs a map"):
        run_probe(source, **OURS, head="conv", layers=("conv2", "classifier"))


def test_too_few_images_of_a_class_or_in_all_are_refused() -> None:
    with pytest.raises(AvtError, match=r"--shots 3 asks for 3 training images of each class, class 1 has 2\. Give at most 2\."):
        subset_rows(torch.tensor([0, 0, 0, 0, 1, 1]), shots=3, seed=0)
    with pytest.raises(AvtError, match=r"class 'dog' has 2\."):
        subset_rows(torch.tensor([0, 0, 0, 0, 1, 1]), shots=3, seed=0, names=("cat", "dog"))
    with pytest.raises(AvtError, match=r"2 labelled images are too few to train a head: it needs 4"):
        subset_rows(torch.tensor([0, 0, 1, 1]), shots=1, seed=0)


def test_the_linear_head_is_pooled_and_others_read_complete_maps(source: Weights) -> None:
    linear, mlp, vector, asked = (
        run_probe(source, **{**OURS, **over})
        for over in ({}, {"head": "mlp2"}, {"layers": ("classifier",)}, {"head": "mlp2", "pool": "avg", "pool_size": 2})
    )

    assert [r.results[0].pool for r in (linear, mlp, vector, asked)] == ["max", "none", "none", "avg"]
    assert [r.protocol["pool_size"] for r in (linear, mlp, asked)] == [{"conv2": 4}, None, {"conv2": 2}]


def test_the_protocol_holds_resolved_settings(source: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_probing, "train_heads", Recorder({peak: [(1.0, 2.0)] for peak in (0.1, 0.01, None)}))
    ours = run_probe(source, **OURS).protocol
    fixed = run_probe(source, **FIXED, head={"name": "nonlinear", "conv_first": "conv2"}).protocol

    assert ours["chosen"] == {"rate": [0.1, 0.01], "held_out": [30], "steps": 200}
    assert (ours["schedule"], ours["rates"], ours["augmentation"], ours["samples"]) == (None, [0.1, 0.01], None, 0)
    assert ours["optimizer"]["weight_decay"] == 5e-4
    assert (ours["pool"], ours["pool_size"], ours["head"]["name"]) == (["max"], {"conv2": 4}, "linear")
    assert (fixed["chosen"], fixed["rates"], fixed["epochs"], fixed["samples"]) == (None, None, 2, 2)
    assert [(piece["start"], piece["rate"]) for piece in fixed["schedule"]["pieces"]] == [(0, 0.1), (1, 0.01)]
    assert fixed["augmentation"] == {"crop": "random", "padding": 4, "flip": True}
    assert (fixed["head"]["conv_first"], fixed["pool_size"]) == (["conv2"], None)
    assert fixed["data"] == [
        {"dataset": "fashion-mini", "train_images": 60, "test_images": 1000, "split": "test", "classes": 10}
    ]


def test_a_probe_of_a_run_is_written_into_it_and_where_asked(tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures" / "p.json"
    run = shutil.copytree(tiny_run, tmp_path / "run")
    result = probe(open_weights(run), ProbeConfig(**OURS), out=out, on_event=lambda event: None)

    (written,) = run.glob("probes/*.json")
    assert written.name.endswith("-conv2-max-linear.json")
    assert json.loads(written.read_text()) == json.loads(out.read_text()) == asdict(result)


# what is refused


def test_a_layer_that_the_backbone_lacks_is_refused_with_the_list(source: Weights) -> None:
    with pytest.raises(AvtError, match=r"no layer 'conv9'\..*Its layers: conv1, conv2, conv3"):
        run_probe(source, layers=("conv9",))


def test_weights_without_a_run_need_a_data_set(source: Weights) -> None:
    with pytest.raises(AvtError, match=r"does not state its training data: give --dataset\."):
        run_probe(replace(source, about={}))


def data_of(*, channels: int = 1, labelled: bool = True) -> ImageData:
    images, labels = torch.zeros(20, channels, 32, 32, dtype=torch.uint8), torch.arange(20) % 2 if labelled else None
    split = MemorySplit(images, labels, prefix="x")
    half = (0.5,) * channels
    return ImageData(split, split, channels=channels, size=(32, 32), mean=half, std=half, classes=None, fingerprint="x")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (data_of(labelled=False), "'fashion-mini' has no labels, which a probe needs: class folders, as DIR/CLASS"),
        (data_of(channels=3), r"takes images of 1 channel\(s\), those of 'fashion-mini' have 3"),
    ],
)
def test_data_that_cannot_be_probed_on_are_refused(
    source: Weights, monkeypatch: pytest.MonkeyPatch, data: ImageData, message: str
) -> None:
    monkeypatch.setattr(evaluation_target, "build_data", lambda *args, **named: data)
    with pytest.raises(AvtError, match=message):
        run_probe(source, dataset=Plugin(name="fashion-mini").model_dump())


def test_rates_for_a_log_variance_layer_are_refused() -> None:
    schedule = {"log_var_pieces": [{"start": 0, "rate": 1e-2}]}
    with pytest.raises(AvtError, match="log_var_pieces belongs to pretraining: a probe's heads have no log-variance layer"):
        resolve_probe({"schedule": schedule}, recipe=None)
