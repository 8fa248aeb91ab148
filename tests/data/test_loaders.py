import gc
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional as reference

from avtcli.config.components import Augment, Plugin
from avtcli.config.resolution import data_folder
from avtcli.contracts import ImageData, MemorySplit, Split
from avtcli.data.datasets import build_data, image_size
from avtcli.data.epoch_table import batch_bounds
from avtcli.data.held_out import limited
from avtcli.data.images import CropSpec, resize
from avtcli.data.resident_images import ResidentImages, build_images, evaluation_batches
from avtcli.data.streaming import StreamedImages
from avtcli.errors import AvtError, RunFailedError
from avtcli.geometry.cropping import resized_size
from avtcli.runtime.reader_workers import choose_workers, require_workers

torch.set_num_threads(1)
CPU = torch.device("cpu")
SIZES = [(40, 56), (61, 37), (48, 48), (33, 90), (38, 39), (90, 41)]


def photo(number: int, size: tuple[int, int], channels: int = 3) -> torch.Tensor:
    """A smooth colourful picture, uint8 (C, H, W)."""
    small = np.random.default_rng(number).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    big = Image.fromarray(small).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(big)).permute(2, 0, 1)[:channels].contiguous()


def picture(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


class Streamed(Split):
    """Images that are not in one tensor; one of them may be damaged, all of them slow."""

    images = None

    def __init__(self, prepared: list[torch.Tensor], *, damaged: int | None = None, seconds: float = 0.0) -> None:
        self.prepared, self.damaged, self.seconds = prepared, damaged, seconds
        self.labels = torch.arange(len(prepared))

    def __len__(self) -> int:
        return len(self.prepared)

    def read(self, i: int) -> torch.Tensor:
        time.sleep(self.seconds)
        if i == self.damaged:
            raise AvtError(f"{self.name(i)} does not decode")
        return self.prepared[i]

    def name(self, i: int) -> str:
        return f"folder/{i}.jpg"


class Faulty(Streamed):
    def read(self, i: int) -> torch.Tensor:
        raise KeyError("a fault in a plugin")


def streamed(split: Split, workers: int = 0, shorter: int | None = None) -> StreamedImages:
    return StreamedImages(split, torch.arange(len(split)), device=CPU, shorter=shorter, workers=workers)


def crop_of(augment: Augment, size: tuple[int, int]) -> CropSpec:
    return CropSpec(size, padding=augment.padding, flip=augment.flip)


def uniforms_for(count: int) -> torch.Tensor:
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def resident(images: torch.Tensor, rows: list[int], shorter: int | None = None) -> ResidentImages:
    return ResidentImages(MemorySplit(images, None, prefix="x"), torch.tensor(rows), device=CPU, shorter=shorter)


def single_batches(images: StreamedImages, count: int = 6) -> Iterator[torch.Tensor]:
    """Read one image a batch."""
    return evaluation_batches(images, [torch.tensor([i]) for i in range(count)], (16, 16))


def assert_pillows(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Expect the grey levels that Pillow's resizing gives, but for a few that are rounded the other way."""
    apart = (found.int() - expected.int()).abs()
    assert apart.max() <= 1
    assert apart.float().mean() < 0.15  # truncating instead of rounding would make it one half


VARIED = [photo(i, size) for i, size in enumerate(SIZES)]


# resize


@pytest.mark.parametrize("size", SIZES)
def test_resize_is_pillows_within_one_level(size: tuple[int, int]):
    image = photo(1, size)
    for shorter in (20, 32, 64):
        expected = pixels(transforms.Resize(shorter)(picture(image)))
        assert_pillows(resize(image, shorter, name="x"), expected)
        assert resized_size(size, shorter) == tuple(expected.shape[1:])


def test_resize_is_done_channel_by_channel_and_only_where_it_changes_the_size():
    image = photo(2, (40, 56))
    assert torch.equal(resize(image[1:2], 24, name="x"), resize(image, 24, name="x")[1:2])
    assert torch.equal(resize(image, None, name="x"), image)
    assert torch.equal(resize(image, 40, name="x"), image)


@pytest.mark.parametrize("shorter", [16, 48])
def test_resident_images_are_resized_once_and_as_streamed_ones(shorter: int):
    images = torch.stack([photo(i, (24, 32)) for i in range(5)])
    for image, number in zip(resident(images, [1, 4], shorter=shorter).images, (1, 4), strict=True):
        assert image.shape == (3, shorter, shorter * 4 // 3)
        assert torch.equal(image, resize(images[number], shorter, name="x"))


# the middle


@pytest.mark.parametrize("size", [(40, 56), (61, 37), (48, 48), (39, 47)])
def test_plain_batches_equal_torchvisions_resize_and_centre_crop(size: tuple[int, int]):
    split = Streamed([photo(i, size) for i in range(3)])
    after = resized_size(size, 36)
    assert (max(after) - 32) % 4 != 1  # a room of 1, 5, 9 ...: the test below
    (batch,) = evaluation_batches(streamed(split, shorter=36), [torch.tensor([2, 0])], (32, 32))
    compose = transforms.Compose([transforms.Resize(36), transforms.CenterCrop(32)])
    for image, number in zip(batch, (2, 0), strict=True):
        assert_pillows(image, pixels(compose(picture(split.prepared[number]))))


def test_the_middle_of_an_odd_room_is_rounded_up():
    image = photo(5, (37, 41))
    for images in (streamed(Streamed([image])), resident(image[None], [0])):
        (batch,) = evaluation_batches(images, [torch.tensor([0])], (32, 32))
        assert torch.equal(batch[0], image[:, 3:35, 5:37])


# crop and flip


@pytest.mark.parametrize("padding", [0, 4])
@pytest.mark.parametrize("flip", [False, True])
def test_training_batches_equal_torchvisions_pad_crop_and_flip(padding: int, flip: bool):
    uniforms = uniforms_for(len(VARIED))
    assert len({bool(u < 0.5) for u in uniforms[:, 2]}) == 2
    augment = Augment(resize=36, crop=32, padding=padding, flip=flip)
    rows = torch.tensor([5, 0, 3, 1, 2, 4])
    (batch,) = streamed(Streamed(VARIED), shorter=36).read_batches([rows], crop_of(augment, (32, 32)), [uniforms[rows]])
    assert batch.shape == (6, 3, 32, 32)
    for image, row in zip(batch, rows.tolist(), strict=True):
        padded = reference.pad(transforms.Resize(36)(picture(VARIED[row])), [padding])
        top = int(uniforms[row, 0] * (padded.height - 32 + 1))
        left = int(uniforms[row, 1] * (padded.width - 32 + 1))
        expected = reference.crop(padded, top, left, 32, 32)
        if flip and uniforms[row, 2] < 0.5:
            expected = reference.hflip(expected)
        assert_pillows(image, pixels(expected))


@pytest.mark.parametrize("augment", [Augment(crop=32), Augment(crop=32, padding=4), Augment(crop=40, padding=4, flip=False)])
def test_streamed_and_resident_images_give_the_same_training_batches(augment: Augment):
    images = torch.stack([photo(i, (40, 56)) for i in range(8)])
    size, uniforms = (augment.crop or 0, augment.crop or 0), uniforms_for(8)
    batches = [torch.tensor([7, 1, 2]), torch.tensor([0, 3, 4, 5, 6])]
    splits = MemorySplit(images, None, prefix="x"), Streamed(list(images))
    both = [build_images(split, torch.arange(8), device=CPU, shorter=None, workers=0) for split in splits]
    assert [type(images) for images in both] == [ResidentImages, StreamedImages]
    draws = [uniforms[rows] for rows in batches]
    for a, b in zip(*(images.read_batches(batches, crop_of(augment, size), draws) for images in both), strict=True):
        assert torch.equal(a, b)


def test_images_that_need_no_crop_and_no_flip_pass_untouched():
    images = torch.stack([photo(i, (32, 32)) for i in range(4)])
    (batch,) = resident(images, [1, 3]).read_batches([torch.tensor([1, 0])], CropSpec((32, 32)), [uniforms_for(2)])
    assert torch.equal(batch, images[[3, 1]])


def test_rows_of_streamed_images_count_the_chosen_ones():
    chosen = StreamedImages(Streamed(VARIED), torch.tensor([4, 1]), device=CPU)
    assert len(chosen) == 2
    expected = list(single_batches(streamed(Streamed(VARIED))))
    assert all(torch.equal(a, expected[i]) for a, i in zip(single_batches(chosen, 2), (4, 1), strict=True))


# workers


def test_the_number_of_workers_does_not_matter(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)  # more workers than CPUs: no warning
    batches = [torch.tensor([5, 0]), torch.tensor([3, 1]), torch.tensor([2]), torch.tensor([4, 4])]
    crop, results = CropSpec((32, 32), padding=2, flip=True), []
    for workers in (0, 1, 2):
        images = streamed(Streamed(VARIED), workers)
        for _ in range(2):  # the same workers in a second epoch
            draws = (uniforms_for(6)[rows] for rows in batches)
            results.append(list(images.read_batches(batches, crop, draws)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_the_batches_left_of_an_epoch_are_those_of_the_full_epoch(workers: int):
    batches = [torch.tensor([i, (i + 1) % 6]) for i in range(6)]
    draws, crop = [uniforms_for(6)[rows] for rows in batches], CropSpec((32, 32), flip=True)
    images = streamed(Streamed(VARIED), workers)
    full = list(images.read_batches(batches, crop, draws))
    broken_off = images.read_batches(batches, crop, draws)
    assert torch.equal(next(broken_off), full[0])
    left = list(images.read_batches(batches[2:], crop, draws[2:]))
    assert all(torch.equal(a, b) for a, b in zip(left, full[2:], strict=True))
    with pytest.raises(RuntimeError, match="another pass over these images began"):
        next(broken_off)


@pytest.mark.parametrize("workers", [0, 1])
def test_reading_leaves_the_global_generator_alone(workers: int):
    before = torch.get_rng_state()
    list(single_batches(streamed(Streamed(VARIED), workers)))
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_read_ahead_while_the_caller_is_busy():
    batches = single_batches(streamed(Streamed(VARIED, seconds=0.3), workers=1), 3)
    next(batches)
    time.sleep(1.5)
    began = time.monotonic()
    next(batches)
    assert time.monotonic() - began < 0.2


def test_workers_outlive_the_signals_that_ask_the_run_to_stop():
    images = streamed(Streamed(VARIED, seconds=0.05), workers=1)
    batches = single_batches(images)
    first = next(batches)
    (worker,) = images._processes
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(worker.pid or 0, number)
    rest = list(batches)
    assert worker.is_alive()
    expected = single_batches(streamed(Streamed(VARIED)))
    assert all(torch.equal(a, b) for a, b in zip([first, *rest], expected, strict=True))


def test_workers_end_with_their_images():
    images = streamed(Streamed(VARIED), workers=1)
    list(single_batches(images, 1))
    (worker,) = images._processes
    assert worker.is_alive()
    gc.disable()
    try:
        del images
        worker.join(timeout=10)
    finally:
        gc.enable()
    assert not worker.is_alive()


@pytest.fixture
def _no_handler() -> Iterator[None]:
    """As in a process that never made a plain DataLoader, which leaves a handler behind for good."""
    found = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGCHLD, found)


@pytest.mark.usefixtures("_no_handler")
def test_a_worker_that_is_killed_is_reported_when_its_batch_is_asked_for():
    before = signal.getsignal(signal.SIGCHLD)
    images = streamed(Streamed(VARIED, seconds=0.2), workers=1)
    batches = single_batches(images)
    next(batches)
    images._processes[0].kill()
    time.sleep(0.5)  # no handler breaks in here
    assert signal.getsignal(signal.SIGCHLD) == before
    with pytest.raises(RunFailedError, match=r"A reader process ended .* use fewer `--workers`"):
        list(batches)


@pytest.mark.usefixtures("_no_handler")
def test_a_worker_that_is_killed_between_two_epochs_is_reported_too():
    images = streamed(Streamed(VARIED), workers=2)
    list(single_batches(images))
    images._processes[-1].kill()
    images._processes[-1].join()
    with pytest.raises(RunFailedError, match=r"A reader process ended .* use fewer `--workers`"):
        list(single_batches(images))


# errors


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_does_not_decode_is_named_without_a_traceback(workers: int):
    with pytest.raises(AvtError, match=r"^folder/3\.jpg does not decode$"):
        list(single_batches(streamed(Streamed(VARIED, damaged=3), workers)))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_in_a_plugin_stays_a_fault(workers: int):
    with pytest.raises(KeyError, match="a fault in a plugin"):
        list(single_batches(streamed(Faulty(VARIED), workers)))


@pytest.mark.parametrize("uniforms", [None, [uniforms_for(2)]])
def test_an_image_smaller_than_the_crop_is_named_with_what_to_set(uniforms: list[torch.Tensor] | None):
    expected = r"folder/3\.jpg is 33x90 px, smaller than the crop of 34x34 px: give `-o augment.resize=34`"
    with pytest.raises(AvtError, match=expected):
        list(streamed(Streamed(VARIED)).read_batches([torch.tensor([0, 3])], CropSpec((34, 34)), uniforms))


# how many workers


def test_images_in_memory_need_no_workers():
    split = MemorySplit(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), None, prefix="x")
    assert choose_workers(3, split, batch_bytes=1) == choose_workers(None, split, batch_bytes=1) == 0


def shared_memory(monkeypatch: pytest.MonkeyPatch, *, free: int, cpus: int, ranks: int = 1) -> None:
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(os.path, "isdir", lambda path: True)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(cpus), raising=False)
    launch = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "x", "MASTER_PORT": 1}
    for name, value in launch.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize(
    ("cpus", "ranks", "free", "expected"),
    [
        *((1, 1, 10**12, 0), (2, 1, 10**12, 1), (6, 1, 10**12, 5), (64, 1, 10**12, 8), (16, 4, 10**12, 3)),
        *((64, 1, 9 * 10**6, 3), (16, 1, 10**6, 0)),  # too little shared memory for a batch
    ],
)
def test_auto_takes_the_cpus_but_one_and_what_shared_memory_holds(
    cpus: int, ranks: int, free: int, expected: int, monkeypatch: pytest.MonkeyPatch
):
    shared_memory(monkeypatch, free=free, cpus=cpus, ranks=ranks)
    assert choose_workers(None, Streamed(VARIED), batch_bytes=10**6) == expected


def test_evaluation_takes_the_workers_that_fit_beside_those_of_training(monkeypatch: pytest.MonkeyPatch):
    shared_memory(monkeypatch, free=100 * 10**6, cpus=2)
    split = Streamed(VARIED)
    assert choose_workers(0, split, batch_bytes=10**9) == 0
    assert choose_workers(12, split, batch_bytes=10**6) == 12
    assert choose_workers(12, split, batch_bytes=10**7) == 3  # 7 batches are 70 of 80 MB
    assert choose_workers(12, split, batch_bytes=10**7, reserved=50 * 10**6) == 1
    assert choose_workers(12, split, batch_bytes=10**8) == 0


def test_workers_of_training_without_room_are_refused_with_advice_that_helps(monkeypatch: pytest.MonkeyPatch):
    shared_memory(monkeypatch, free=100 * 10**6, cpus=2)
    split, image = Streamed(VARIED), 10**5
    assert require_workers(12, split, batch_bytes=10 * image) == 12
    with pytest.raises(AvtError, match=r"--workers 12 needs 250 MB of /dev/shm, and 80 MB may be used\.") as refused:
        require_workers(12, split, batch_bytes=100 * image)
    advice = re.search(r"Give `--workers (\d+)`, a --batch-size (\d+) times smaller", str(refused.value))
    assert advice
    workers, times = map(int, advice.groups())
    assert require_workers(workers, split, batch_bytes=100 * image) == workers == 3
    assert require_workers(None, split, batch_bytes=100 * image) == 1
    assert require_workers(12, split, batch_bytes=100 // times * image) == 12


# which images, in which batches, of which size


def data_of(size: tuple[int, int] | None) -> ImageData:
    return ImageData(Streamed([]), None, 3, size, mean=(0.5,) * 3, std=(0.5,) * 3, classes=None, fingerprint="")


@pytest.mark.parametrize(
    ("size", "augment", "expected"),
    [
        ((32, 48), Augment(), (32, 48)),
        ((32, 48), Augment(resize=64), (64, 96)),
        ((32, 48), Augment(resize=64, crop=56), (56, 56)),
        ((32, 32), Augment(crop=32, padding=4), (32, 32)),
        (None, Augment(resize=256, crop=224), (224, 224)),
        (None, Augment(crop=224), (224, 224)),
    ],
)
def test_the_network_sees_the_crop_or_the_resized_image(
    size: tuple[int, int] | None, augment: Augment, expected: tuple[int, int]
):
    assert image_size(data_of(size), augment) == expected


def test_images_of_many_sizes_need_a_crop():
    with pytest.raises(AvtError, match=r"The images differ in size: give `-o augment.resize=256 -o augment.crop=224`"):
        image_size(data_of(None), Augment(resize=256))


@pytest.mark.parametrize(
    ("size", "augment", "found"),
    [
        ((32, 32), Augment(crop=40), "32x32 px"),
        ((64, 96), Augment(resize=32, crop=40, padding=2), "32x48 px"),
        (None, Augment(resize=200, crop=224), "200 px on their shorter side"),
    ],
)
def test_a_crop_larger_than_the_images_is_refused_at_once(size: tuple[int, int] | None, augment: Augment, found: str):
    with pytest.raises(AvtError, match=f"The images are {found}, too small for augment.crop = {augment.crop}"):
        image_size(data_of(size), augment)


def test_a_partial_batch_is_kept_and_a_single_image_joins_the_batch_before():
    assert batch_bounds(10, 4) == [(0, 4), (4, 8), (8, 10)]
    assert batch_bounds(9, 4) == [(0, 4), (4, 9)]
    assert batch_bounds(1, 4) == [(0, 1)]
    assert batch_bounds(11, 4, world=2) == [(0, 4), (4, 11)]
    assert len(batch_bounds(50_000, 512)) == 98


def test_a_limit_draws_the_same_images_each_time():
    indices = torch.arange(100, 150)
    drawn = limited(indices, 20)
    assert torch.equal(drawn, limited(indices, 20))
    assert len(set(drawn.tolist())) == 20
    assert set(limited(indices, 10).tolist()) < set(drawn.tolist()) < set(indices.tolist())
    assert torch.equal(limited(indices, None), indices)
    with pytest.raises(AvtError, match="--limit-train 51 is more than the 50 images of the split that may be trained on"):
        limited(indices, 51)


def test_the_data_folder_is_the_option_then_the_environment_then_data(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AVT_DATA", "/somewhere")
    assert data_folder("/here") == Path("/here")
    assert data_folder(None) == Path("/somewhere")
    monkeypatch.delenv("AVT_DATA")
    assert data_folder(None) == Path.cwd() / "data"


def test_a_data_set_without_training_images_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("avtcli.registry.build", lambda *args, **kwargs: data_of(None))
    with pytest.raises(AvtError, match="The data set 'nothing' has no training images"):
        build_data(Plugin(name="nothing"), None)
