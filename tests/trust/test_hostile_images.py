"""Images that are damaged, extreme or no images: refused by name before they cost memory, and skipped in pretraining."""

import functools
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from avtcli.contracts import ImageData
from avtcli.data.bad_images import BadImages
from avtcli.data.datasets import check_data, listings_of
from avtcli.data.images import CropSpec
from avtcli.data.streaming import StreamedImages
from avtcli.errors import AvtError
from avtcli.events import ignore
from avtcli.storage.run_data import BadImage, append_bad_images, read_bad_images, write_listings
from avtcli.training.monitor import measure_quality
from avtcli.training.training_setup import build_training_setup
from avtplugins.datasets._encoded import MAX_BYTES
from avtplugins.datasets.folder import folder
from tests.support import run_tiny, tiny_config

SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "PPM": "ppm"}
GREY16 = np.arange(65536).reshape(256, 256).astype(np.uint16)
HUGE_GIF = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b","


def photo(number: int = 0, *, side: int = 40) -> Image.Image:
    small = np.random.default_rng(number).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)


def encoded(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    file = BytesIO()
    (image or photo()).save(file, kind, **options)
    return file.getvalue()


@functools.cache
def png(width: int, height: int, *, depth: int = 1, colour: int = 0) -> bytes:
    """A complete PNG of zeros that is small on disk."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer, row = zlib.compressobj(9), bytes(1 + (width * depth * (3 if colour else 1) + 7) // 8)
    content = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def damaged() -> Iterator[tuple[str, bytes]]:
    """Files that hold no complete image, by name."""
    yield from (("empty.png", b""), ("byte.jpg", b"\xff"), ("page.jpg", b"<!DOCTYPE html><html>Not found</html>"))
    yield from (("text.png", b"no image\n" * 40), ("file.pdf.png", b"%PDF-1.7\n"), ("eps.png", b"%!PS-Adobe-3.0 EPSF-3.0\n"))
    yield from (("fits.png", b"SIMPLE  =                    T".ljust(2880)), ("anim.gif.png", HUGE_GIF))
    yield from (("psd.png", b"8BPS\0\1".ljust(80, b"\0")), ("float.ppm", b"Pf\n40 40\n-1.0\n" + bytes(6400)))
    yield from (("wide.png", png(30_000, 30_000)), ("square.png", png(13_377, 13_377)), ("none.ppm", b"P6 0 40 255\n"))
    for kind, suffix in SUFFIXES.items():
        content = encoded(kind)
        yield from ((f"cut{tenth}.{suffix}", content[: len(content) * tenth // 10]) for tenth in range(1, 10))


def usable() -> Iterator[tuple[str, bytes]]:
    """Odd files that hold an image, by name."""
    exif = Image.Exif()
    exif[0x0112] = 6
    yield from ((f"good.{suffix}", encoded(kind)) for kind, suffix in SUFFIXES.items())
    yield from (("cmyk.jpg", encoded("JPEG", photo().convert("CMYK"))), ("turned.jpg", encoded("JPEG", exif=exif)))
    yield from (("alpha.png", encoded("PNG", photo().convert("RGBA"))), ("bits.png", encoded("PNG", photo().convert("1"))))
    yield from (("palette.png", encoded("PNG", photo().quantize(8), transparency=0)), ("png.jpg", encoded("PNG")))
    yield from (("la.png", encoded("PNG", photo().convert("LA"))), ("deep.png", encoded("PNG", Image.fromarray(GREY16))))
    yield from (("dot.png", encoded("PNG", photo(side=1))), ("line.png", png(1, 300)))


def written(path: Path, files: Iterator[tuple[str, bytes]]) -> ImageData:
    path.mkdir(exist_ok=True)
    for name, content in files:
        (path / name).write_bytes(content)
    return folder(path)


def names(data: ImageData) -> list[str]:
    return [data.train.name(i) for i in range(len(data.train))]


# one file


def test_each_damaged_file_is_refused_by_its_name(tmp_path: Path) -> None:
    data = written(tmp_path / "x", damaged())

    assert len(data.train) == len(list(damaged())) == 58
    for i, name in enumerate(names(data)):
        with pytest.raises(AvtError, match=rf"^{re.escape(str(tmp_path / 'x' / name))} (does not decode|states more than 50)"):
            data.train.read(i)


def test_each_odd_file_with_an_image_is_read(tmp_path: Path) -> None:
    data = written(tmp_path / "x", usable())

    sizes = {"deep.png": (256, 256), "dot.png": (1, 1), "line.png": (300, 1)}
    for i, name in enumerate(names(data)):
        image = data.train.read(i)
        assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, *sizes.get(name, (40, 40))))


@pytest.mark.parametrize("kind", SUFFIXES)
def test_flipped_bits_give_an_image_or_an_error(kind: str, tmp_path: Path) -> None:
    content, generator = encoded(kind), np.random.default_rng(0)
    for number in range(40):
        flipped = bytearray(content)
        for place in generator.integers(0, len(content), 3):
            flipped[place] ^= 1 << int(generator.integers(8))
        data = written(tmp_path / "x", iter([(f"x.{SUFFIXES[kind]}", bytes(flipped))]))
        found: torch.Tensor | str
        try:
            found = data.train.read(0)
        except AvtError as error:
            found = str(error)
        name = str(tmp_path / "x" / names(data)[0])
        assert name in found if isinstance(found, str) else (found.dtype, len(found)) == (torch.uint8, 3), number


def test_16_bit_images_are_scaled_by_their_stated_depth(tmp_path: Path) -> None:
    ramp, colour = encoded("PNG", Image.fromarray(GREY16)), GREY16.astype(">u2").tobytes()
    rgb = np.repeat(GREY16[..., None], 3, 2).astype(">u2").tobytes()
    twelve = (GREY16 >> 4).astype(">u2").tobytes()
    plain = b"P2 256 256 65535\n" + b" ".join(b"%d" % level for level in GREY16.flatten().tolist())
    files = {"a.png": ramp, "b.ppm": b"P5 256 256 65535\n" + colour, "c.ppm": plain, "d.ppm": b"P6 256 256 65535\n" + rgb}
    data = written(tmp_path / "x", iter({**files, "e.ppm": b"P5 256 256 4095\n" + twelve}.items()))

    expected = torch.arange(256)[:, None].expand(3, 256, 256)
    for i in range(5):
        image = data.train.read(i)
        assert (image.int() - expected).abs().max() <= 1, names(data)[i]
        assert image.double().mean((1, 2)).tolist() == pytest.approx([127.5] * 3, abs=0.01 if i < 3 else 0.5)


def test_what_is_no_file_is_left_out_or_refused_without_waiting(tmp_path: Path) -> None:
    data = written(tmp_path / "x", iter([(f"{i}.png", encoded("PNG")) for i in range(4)]))
    (tmp_path / "x" / "folder.jpg").mkdir()
    (tmp_path / "x" / "gone.jpg").symlink_to("nothing")
    os.mkfifo(tmp_path / "x" / "pipe.png")
    assert names(folder(tmp_path / "x")) == names(data)

    for i in range(3):
        (tmp_path / "x" / f"{i}.png").unlink()
    (tmp_path / "x" / "0.png").mkdir()
    os.mkfifo(tmp_path / "x" / "1.png")
    with (tmp_path / "x" / "3.png").open("ab") as file:
        file.truncate(MAX_BYTES + 1)
    problems = [
        "cannot be read now: Is a directory",
        "is not a regular file",
        "cannot be read now: No such file",
        "has 400000001 bytes",
    ]
    for i, problem in enumerate(problems):
        with pytest.raises(AvtError, match=rf"x/{i}\.png .*{problem}"):
            data.train.read(i)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_permission_is_refused_by_name(tmp_path: Path) -> None:
    data = written(tmp_path / "x", iter([("a.png", encoded("PNG"))]))
    (tmp_path / "x" / "a.png").chmod(0)
    with pytest.raises(AvtError, match=r"a\.png was listed and cannot be read now: Permission denied"):
        data.train.read(0)


def test_an_image_that_would_be_huge_after_resizing_is_refused(tmp_path: Path) -> None:
    data = written(tmp_path / "x", iter([("long.png", png(20_000, 1)), ("fine.png", png(20_000, 200))]))
    images = StreamedImages(data.train, torch.arange(2), device=torch.device("cpu"), shorter=256)

    assert [batch.shape for batch in images.read_batches([torch.tensor([0])], CropSpec((224, 224)))] == [(1, 3, 224, 224)]
    expected = r"long\.png is 1x20000 px, and would be 256x5120000 px by `augment\.resize=256`: more than 50 million"
    with pytest.raises(AvtError, match=expected):
        list(images.read_batches([torch.tensor([1])], CropSpec((224, 224))))


_PEAK = r"""
import re, sys, torch
from pathlib import Path
from avtcli.data.images import CropSpec
from avtcli.data.streaming import StreamedImages
from avtcli.errors import AvtError
from avtplugins.datasets.folder import folder
from tests.support import run_tiny, tiny_config
data = folder(Path(sys.argv[1]))
images = StreamedImages(data.train, torch.arange(len(data.train)), device=torch.device("cpu"), shorter=256)
def read(row):
    try:
        return list(images.read_batches([torch.tensor([row])], CropSpec((224, 224))))
    except AvtError as error:
        return str(error)
def peak():
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
assert not isinstance(read(0), str)
before = peak()
assert all(isinstance(read(row), str) for row in range(1, len(data.train) - 1))
bombs = peak()
assert not isinstance(read(len(data.train) - 1), str)
print((bombs - before) // 1024, (peak() - before) // 1024)
"""


def test_bombs_cost_no_memory(tmp_path: Path) -> None:
    huge_webp = b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8X" + struct.pack("<IIHBHB", 10, 0, 16382, 0, 16382, 0)
    bombs = {"b0.png": png(30_000, 30_000), "b1.png": png(13_377, 13_377), "b2.png": png(20_000, 1), "b3.webp": huge_webp}
    bombs |= {"b4.gif.png": HUGE_GIF, "b5.ppm": b"P6 60000 60000 255\n", "b6.bmp": b"BM" + bytes(12) + _bmp_header(30_000)}
    written(tmp_path / "x", iter({"a.png": encoded("PNG"), **bombs, "z.png": png(7000, 7000)}.items()))
    ended = subprocess.run([sys.executable, "-c", _PEAK, str(tmp_path / "x")], capture_output=True, text=True, check=False)

    assert ended.stderr == ""
    grown, control = map(int, ended.stdout.split())
    assert grown < 64
    assert control > 64  # of 49 million pixels, which are allowed


def _bmp_header(side: int) -> bytes:
    return struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)


# in pretraining


def mixed(tmp_path: Path, *, count: int = 12, bad: tuple[int, ...] = (3, 4, 11)) -> ImageData:
    """Photographs of which some do not decode; two bad ones follow each other, and one is the last."""
    content = (b"no image" if i in bad else encoded("PNG", photo(i)) for i in range(count))
    return written(tmp_path / "photos", ((f"{i:02}.png", c) for i, c in enumerate(content)))


def policy(data: ImageData, *, fraction: float = 0.5, **more: Any) -> BadImages:
    return BadImages(data.train, "train", used=len(data.train), max_fraction=fraction, dataset="folder:my photos", **more)


def read_all(data: ImageData, bad: BadImages | None, *, workers: int = 0, rows: torch.Tensor | None = None) -> torch.Tensor:
    indices = torch.arange(len(data.train)) if rows is None else rows
    images = StreamedImages(data.train, indices, device=torch.device("cpu"), workers=workers, bad=bad)
    uniforms = torch.rand(len(indices), 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    crop = CropSpec((32, 32), padding=2, flip=True)
    return torch.cat(list(images.read_batches(torch.arange(len(indices)).split(5), crop, uniforms.split(5))))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_is_replaced_by_the_next_with_its_own_crop(workers: int, tmp_path: Path) -> None:
    data, order = mixed(tmp_path), [*range(3), 5, 5, *range(5, 11), 0]
    bad = policy(data)
    found = read_all(data, bad, workers=workers)

    assert torch.equal(found, read_all(data, None, rows=torch.tensor(order)))
    assert [(image.split, image.name) for image in bad.take_new()] == [("train", f"{i:02}.png") for i in (3, 4, 11)]
    assert torch.equal(read_all(data, bad, workers=workers), found)
    assert bad.take_new() == []
    assert len(bad.reasons) == 3
    assert bad.usable(torch.tensor([2, 3, 4, 5])).tolist() == [True, False, False, True]


def test_the_next_image_is_the_next_of_the_runs_own(tmp_path: Path) -> None:
    data, rows = mixed(tmp_path), torch.tensor([8, 3, 1, 11])

    assert torch.equal(read_all(data, policy(data), rows=rows), read_all(data, None, rows=torch.tensor([8, 1, 1, 8])))


def test_images_that_are_known_to_be_bad_are_not_tried(tmp_path: Path) -> None:
    data = mixed(tmp_path)
    bad = policy(data)
    found = read_all(data, bad)
    known = bad.take_new()
    for i in (3, 4, 11):
        (tmp_path / "photos" / f"{i:02}.png").write_bytes(encoded("PNG", photo(i)))

    assert torch.equal(read_all(data, policy(data, known=known)), found)
    assert not torch.equal(read_all(data, policy(data)), found)


@pytest.mark.parametrize("workers", [0, 1])
def test_more_bad_images_than_allowed_end_the_run_with_both_options(workers: int, tmp_path: Path) -> None:
    data = mixed(tmp_path)
    expected = (
        r"^3 of the 12 train images cannot be used, and at most 2 may be skipped \(--max-bad-fraction 0\.2\)\. The first:\n"
        r"  .*03\.png does not decode.*\n  .*04\.png .*\n  .*11\.png [^\n]*\nRepair them, or add `--max-bad-fraction 0\.25`"
        r".* `avt data check 'folder:my photos'` finds them all, `--on-bad-image raise` stops"
    )
    with pytest.raises(AvtError, match=expected):
        read_all(data, policy(data, fraction=0.2), workers=workers)
    with pytest.raises(AvtError, match=r"2 of the 12 train images cannot be used, and at most 1 may"):
        read_all(data, policy(data, fraction=0.01), workers=workers)
    with pytest.raises(AvtError, match=r"1 of the 12 train images cannot be used, and at most 0 may"):
        read_all(data, policy(data, fraction=0), workers=workers)
    read_all(data, policy(data, fraction=0.25), workers=workers)
    with pytest.raises(AvtError, match=r"^\S*03\.png does not decode"):
        read_all(data, policy(data, skip=False), workers=workers)


@pytest.mark.parametrize(("bad", "of"), [(29, 100), (3, 12), (1, 7), (11, 1000), (13, 286), (4, 5)])
def test_the_proposed_bound_suffices_and_one_of_a_hundredth_less_does_not(bad: int, of: int, tmp_path: Path) -> None:
    def problem(fraction: float) -> str:
        train = mixed(tmp_path, count=1).train
        bound = BadImages(train, "train", used=of, max_fraction=fraction, dataset="folder:x")
        return bound.problem(["no image"] * bad)

    proposed = float(problem(0).split("add `--max-bad-fraction ")[1].split("`")[0])
    assert problem(proposed) == ""
    assert problem(round(proposed - 0.01, 2)) != ""


def test_no_bound_is_proposed_where_no_image_can_be_used(tmp_path: Path) -> None:
    bound = BadImages(mixed(tmp_path, count=1).train, "train", used=3, max_fraction=1, dataset="folder:x")

    assert "Repair them: `avt data check folder:x`" in bound.problem(["no image"] * 3)


def test_without_any_usable_image_there_is_no_endless_search(tmp_path: Path) -> None:
    data = mixed(tmp_path, count=3, bad=(0, 1, 2))
    with pytest.raises(AvtError, match="3 of the 3 train images cannot be used, and at most 2 may be skipped"):
        read_all(data, policy(data, fraction=1))


def test_padding_does_not_make_an_image_large_enough(tmp_path: Path) -> None:
    data = written(tmp_path / "x", iter([("a.png", encoded("PNG", photo(side=31))), ("b.png", encoded("PNG", photo(side=32)))]))
    bad = policy(data)
    read_all(data, bad)

    assert [image.name for image in bad.take_new()] == ["a.png"]
    assert "a.png is 31x31 px, smaller than the crop of 32x32 px" in bad.reasons[0]


def pretrained(out: Path, photos: Path, **over: Any) -> bytes:
    """Pretrain for nine steps, with an evaluation each epoch, and return the weights."""
    settings = {"max_bad_fraction": 0.1, "augment": {"crop": 32}, "limit_train": None, "eval_every": 3, **over}
    run_tiny(out, dataset={"name": f"folder:{photos}"}, **settings)
    return (out / "checkpoints" / "step-0000000009" / "model.safetensors").read_bytes()


def test_a_run_goes_on_over_bad_images_with_equal_weights_however_it_is_read(tmp_path: Path) -> None:
    mixed(tmp_path, count=40, bad=(3, 4, 39))
    photos, runs = tmp_path / "photos", [tmp_path / name for name in ("one", "two", "resumed")]
    weights = pretrained(runs[0], photos, workers=0)
    assert pretrained(runs[1], photos, workers=2) == weights
    run_tiny(
        runs[2],
        dataset={"name": f"folder:{photos}"},
        max_bad_fraction=0.1,
        augment={"crop": 32},
        limit_train=None,
        eval_every=3,
        workers=0,
        max_steps=4,
    )
    known = [(bad.split, bad.name) for bad in read_bad_images(runs[2])]
    assert known
    assert set(known) <= {("train", "03.png"), ("train", "04.png"), ("train", "39.png")}
    (photos / known[0][1]).unlink()  # as the message advises
    assert pretrained(runs[2], photos, workers=0, resume=True) == weights
    for run in runs:
        assert sorted(bad.name for bad in read_bad_images(run)) == ["03.png", "04.png", "39.png"]
        assert json.loads((run / "result.json").read_text())["skipped_images"] == 3
    (photos / known[0][1]).write_bytes(b"no image")
    logs = [(run / "metrics.jsonl").read_text() for run in runs]
    assert logs[0] == logs[1] == logs[2]

    (photos / "00.png").rename(tmp_path / "00.png")
    with pytest.raises(AvtError, match=r"images are not those that .*one was trained on: 1 missing, first '00\.png'"):
        pretrained(runs[0], photos, workers=0, resume=True)
    (tmp_path / "00.png").rename(photos / "00.png")
    with pytest.raises(AvtError, match=r"0[34]\.png does not decode"):
        pretrained(tmp_path / "raised", photos, workers=0, on_bad_image="raise")
    with pytest.raises(AvtError, match=r"2 of the 40 train images cannot be used, and at most 1 may be skipped"):
        pretrained(tmp_path / "over", photos, workers=0, max_bad_fraction=0.01)


def test_bad_images_of_an_evaluation_are_left_out_with_their_labels(tmp_path: Path) -> None:
    """A bad image of the first class would be replaced by a white one of the second."""
    for part, name, grey in ((part, name, grey) for part in ("train", "val") for name, grey in (("a", 0), ("b", 255))):
        content = encoded("PNG", Image.new("RGB", (40, 40), (grey, grey, grey)))
        bad = range(3, 6) if name == "a" else ()
        (tmp_path / part / name).mkdir(parents=True)
        for i in range(24):
            (tmp_path / part / name / f"{i}.png").write_bytes(b"" if i in bad or part == "val" else content)
    config = tiny_config(
        dataset={"name": f"folder:{tmp_path}"}, augment={"crop": 32}, limit_train=None, max_bad_fraction=0.3, device="cpu"
    )
    setup = build_training_setup(config, on_event=ignore)
    setup.net.eval()

    assert measure_quality(setup).knn_top1 == 100
    found = [(bad.split, bad.name) for bad in setup.bad_images.take_new()]
    assert sorted(found) == [("train", f"a/{i}.png") for i in range(3, 6)]


def test_evaluation_does_not_need_the_shared_memory_that_training_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 2 * 10**6}))
    over = {"dataset": {"name": f"folder:{tmp_path / 'photos'}"}, "augment": {"crop": 32}, "limit_train": None}
    setup = build_training_setup(tiny_config(workers=2, **over), on_event=ignore)

    assert (setup.workers, setup.eval_workers) == (2, 0)
    with pytest.raises(AvtError, match=r"--workers 2 needs .* Give `--workers 0`"):
        build_training_setup(tiny_config(workers=2, **{**over, "batch_size": 200}), on_event=ignore)


# what a run keeps


ODD = ["a.png", "line\nbreak.png", 'quo"te,comma\\.png', "é\u2028.png", os.fsdecode(b"caf\xe9\xff.png"), "\x1b[31mred.png", " "]


def test_bad_images_csv_keeps_any_name_each_once(tmp_path: Path) -> None:
    first = [BadImage("train", name, f"{name} does not decode") for name in ODD]

    assert read_bad_images(tmp_path) == []
    assert append_bad_images(tmp_path, [*first, first[0]]) == first
    assert append_bad_images(tmp_path, first) == []
    assert append_bad_images(tmp_path, [BadImage("test", "a.png", "x")]) == [BadImage("test", "a.png", "x")]
    assert read_bad_images(tmp_path) == [*first, BadImage("test", "a.png", "x")]
    lines = (tmp_path / "bad_images.csv").read_bytes().decode("utf-8").split("\n")
    assert (lines[0], lines[1], len(lines)) == ("split,name,reason", "train,a.png,a.png does not decode", len(ODD) + 3)


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"split,name,reason\ntrain,a\n", b'split,name,reason\ntrain,"a', b"\0\na,\\u,c\n"]
)
def test_a_damaged_bad_images_csv_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad_images.csv").write_bytes(content)
    with pytest.raises(AvtError, match=r"bad_images\.csv cannot be read: .* restore it, or delete it"):
        read_bad_images(tmp_path)


def test_a_run_goes_on_with_its_list_when_only_bad_images_changed(tmp_path: Path) -> None:
    data, run = mixed(tmp_path), tmp_path / "run"
    run.mkdir()
    write_listings(run, listings_of(data))
    bad = policy(data)
    found = read_all(data, bad)

    def check() -> ImageData:
        return check_data(folder(tmp_path / "photos"), run=run, fingerprint=data.fingerprint, advice="Do it.")

    (tmp_path / "photos" / "03.png").unlink()
    (tmp_path / "photos" / "04.png").write_bytes(encoded("PNG", photo(4)))
    refused = (
        r"^The images are not those that .*/run was trained on: 1 missing, first '03\.png'; 1 changed, first '04\.png'\. Do"
    )
    with pytest.raises(AvtError, match=refused):
        check()
    append_bad_images(run, bad.take_new())
    again = check()
    assert (again.fingerprint, names(again)) == (data.fingerprint, names(data))
    assert torch.equal(read_all(again, policy(again, known=read_bad_images(run))), found)

    (tmp_path / "photos" / "new.png").write_bytes(encoded("PNG"))
    with pytest.raises(AvtError, match=r"trained on: 1 added, first 'new\.png'\. Do it\."):
        check()
    (tmp_path / "photos" / "new.png").unlink()
    (tmp_path / "photos" / "00.png").unlink()
    with pytest.raises(AvtError, match=r"trained on: 1 missing, first '00\.png'\. Do it\."):
        check()
    (run / "images-train.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(AvtError, match=rf"the fingerprint was {data.fingerprint}, found [0-9a-f]+\. Do it\."):
        check()
