"""Tar shards in WebDataset's layout: what a sample is, the index, what is not right in them, and equality with a folder."""

import bz2
import contextlib
import gzip
import io
import lzma
import os
import pickle
import shutil
import tarfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from avtcli.config.components import Plugin
from avtcli.contracts import ImageData
from avtcli.data.datasets import build_data
from avtcli.data.held_out import partition
from avtcli.errors import AvtError
from avtcli.events import Event, Notice
from avtplugins.datasets import _shard_index
from avtplugins.datasets.folder import folder
from avtplugins.datasets.shards import expand, find_shards, shards
from tests.support import run_tiny
from tests.trust.test_hostile_images import damaged, usable

torch.set_num_threads(1)

Members = Iterable[tuple[str, bytes]]


def image(level: int, kind: str = "PNG", *, side: int = 9) -> bytes:
    """Of one grey level in RGB."""
    file = io.BytesIO()
    Image.fromarray(np.full((side, side + 1, 3), level, np.uint8)).save(file, kind)
    return file.getvalue()


def write(name: str, members: Members, *, kind: int = tarfile.USTAR_FORMAT) -> Path:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(name, "w", format=kind) as tar:
        for member, content in members:
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return Path(name).absolute()


def names(data: ImageData) -> list[str]:
    return [data.train.name(i) for i in range(len(data.train))]


def levels(data: ImageData) -> list[int]:
    return [int(data.train.read(i)[0, 0, 0]) for i in range(len(data.train))]


def numbered(*numbers: int, label: str = "cls") -> Members:
    """Samples of a grey level each, of two classes."""
    for i in numbers:
        yield f"{i:04}.png", image(i)
        yield f"{i:04}.{label}", b"%d\n" % (i % 2)


# what a sample is


def test_a_sample_is_an_image_with_the_files_of_its_key() -> None:
    path = write(
        "a.tar",
        [
            ("./x/1.5/a.PNG", image(1)),
            ("./x/1.5/a.cls", b" 10\n"),
            ("b.json", b'{"label": 9, "more": [1]}'),
            ("b.txt", b"no label"),
            ("b.jpg", image(2, "JPEG")),
            ("b.png", image(3)),
            ("c.ppm", image(4, "PPM")),
            ("c.seg.png", image(5)),
            ("d.npy", b"x"),
            ("d.cls", b"1"),
            ("e.txt", b"dog"),
            ("e.bmp", image(6, "BMP")),
            ("._e.png", b"of macOS"),
        ],
    )
    data = shards(path)

    assert names(data) == ["a.tar/x/1.5/a.PNG", "a.tar/b.jpg", "a.tar/c.ppm", "a.tar/e.bmp"]
    assert levels(data) == [1, 2, 4, 6]
    assert data.classes == ("9", "10", "dog")
    assert data.train.labels.tolist() == [1, 0, -1, 2]
    assert data.left_out == {
        "further .png of a sample": 1,
        ".seg.png": 1,
        ".npy": 1,
        "samples without an image": 1,
        "hidden": 1,
    }
    assert data.train.describe(1) == "JPEG RGB"


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_odd_names_are_read_in_every_format(kind: int) -> None:
    """USTAR divides a path of 256 bytes at most, GNU and pax have headers of their own for longer and other ones."""
    odd = [] if kind == tarfile.USTAR_FORMAT else [f"{'d' * 90}/{'e' * 90}/{'f' * 300}", "é\udcff", "line\nbreak"]
    keys = ["plain", f"{'d' * 90}/{'e' * 60}/{'f' * 90}", *odd]
    members = [
        (f"{key}{suffix}", content) for i, key in enumerate(keys) for suffix, content in ((".png", image(i)), (".cls", b"7"))
    ]
    data = shards(write("a.tar", members, kind=kind))

    assert names(data) == [f"a.tar/{key}.png" for key in keys]
    assert levels(data) == list(range(len(keys)))
    assert data.train.labels.tolist() == [0] * len(keys)


def test_links_and_folders_are_no_samples() -> None:
    with tarfile.open("a.tar", "w") as tar:
        for name, kind in (("x", tarfile.DIRTYPE), ("x/l.png", tarfile.SYMTYPE), ("x/h.png", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("x/y.png")
        info.size = len(image(3))
        tar.addfile(info, io.BytesIO(image(3)))
    data = shards(Path("a.tar").absolute())

    assert (names(data), levels(data), data.left_out) == (["a.tar/x/y.png"], [3], {"no regular files": 2})


def test_text_that_hardly_repeats_is_no_label(monkeypatch: pytest.MonkeyPatch) -> None:
    captions = [
        (f"{i}.{suffix}", text) for i in range(6) for suffix, text in (("png", image(i)), ("txt", b"a photo of %d" % i))
    ]
    data = shards(write("a.tar", captions))
    with_class = shards(write("b.tar", [*captions[:2], ("0.cls", b"3"), *captions[2:4], ("1.cls", b"3")]))

    assert (data.train.labels, data.classes) == (None, None)
    assert "labels: none, as the .txt files differ like captions" in data.notes
    assert (with_class.classes, with_class.train.labels.tolist()) == (("3",), [0, 0])
    monkeypatch.setattr(_shard_index, "MAX_TEXTS", 3)
    many = shards(write("c.tar", captions))
    assert (len(many.train), many.train.labels) == (6, None)
    assert shards(write("d.tar", numbered(1, 2)), labels="none").train.labels is None


# which shards, and splits


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("d-{008..011}.tar", ["d-008.tar", "d-009.tar", "d-010.tar", "d-011.tar"]),
        ("d-{8..10}.tar", ["d-8.tar", "d-9.tar", "d-10.tar"]),
        ("{b,a}/{0..1}.tar", ["b/0.tar", "b/1.tar", "a/0.tar", "a/1.tar"]),
        ("{a,{b,c}1}.tar", ["a.tar", "b1.tar", "a.tar", "c1.tar"]),
    ],
)
def test_braces_expand_as_in_the_shell(pattern: str, expected: list[str]) -> None:
    assert sorted(expand(pattern)) == sorted(expected)
    if "{{" not in pattern and ",{" not in pattern:
        assert expand(pattern) == expected


def test_shards_come_in_the_order_of_braces_and_sorted_by_a_glob() -> None:
    for name in ("b", "a", "c[1]"):
        write(f"{name}.tar", numbered(ord(name[0])))
    here = Path.cwd()

    assert [path.name for path in find_shards(here / "{b,a}.tar")] == ["b.tar", "a.tar"]
    assert [path.name for path in find_shards(here / "*.tar")] == ["a.tar", "b.tar", "c[1].tar"]
    assert [path.name for path in find_shards(here / "c[1].tar")] == ["c[1].tar"]
    assert names(shards(here / "{b,a}.tar")) == ["b.tar/0098.png", "a.tar/0097.png"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("d-{0..3}.tar", r"2 of the 4 shards \S*/d-\{0\.\.3\}\.tar are missing, the first is \S*/d-2\.tar\. Expected plain"),
        ("e-*.tar", r"The shards are missing, the first is \S*/e-\*\.tar\. Expected plain \.tar files in WebDataset's layout"),
        ("", r"The shards \S* are a folder\. .*: name the files, as in '\S*/\*\.tar'"),
    ],
)
def test_missing_shards_are_named(pattern: str, message: str) -> None:
    for i in range(2):
        write(f"d-{i}.tar", numbered(i))
    with pytest.raises(AvtError, match=message):
        shards(Path.cwd() / pattern)


def test_the_test_split_has_its_own_shards_and_the_same_classes() -> None:
    train, test = write("train.tar", numbered(4, 3, 5)), write("test.tar", [("1.png", image(1)), ("1.cls", b"0")])
    data = shards(train, test=test)

    assert (data.classes, data.train.labels.tolist(), data.test.labels.tolist()) == (("0", "1"), [0, 1, 1], [0])
    assert data.notes[:2] == ("shards: 1", "splits: train and test")
    with pytest.raises(AvtError, match=r"train\.tar is in the training and in the test split\. Give dataset\.test other"):
        shards(train.parent / "t*n.tar", test=train)


def test_images_are_found_by_their_names_also_where_shards_share_them() -> None:
    for name in ("x/a.tar", "x/b.tar", "y/a.tar"):
        write(name, [("p/1.png", image(1)), ("p/2.png", image(2))])
    data = shards(Path.cwd() / "{x,y}" / "*.tar")

    assert names(data) == [f"{shard}/p/{i}.png" for shard in ("x/a.tar", "x/b.tar", "y/a.tar") for i in (1, 2)]
    wanted = {"x/b.tar/p/2.png", "y/a.tar/p/1.png", "a.tar/p/1.png", "p/1.png", "none"}
    assert list(data.train.find(wanted)) == [(3, "x/b.tar/p/2.png"), (4, "y/a.tar/p/1.png")]


# the index


def test_shards_are_indexed_once_and_again_when_one_changed(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    path, said = write("a.tar", numbered(1, 2, 3)), list[Event]()
    first = build_data(Plugin(name=f"shards:{path}"), None, on_event=said.append)
    (indexing,) = (event.text for event in said if isinstance(event, Notice))
    assert indexing.startswith(f"indexing 1 shards of 1.02e-05 GB, once, in {Path('cache').absolute()}/avt/shards/")

    with monkeypatch.context() as patch:
        patch.setattr(_shard_index, "read_samples", None)
        again = build_data(Plugin(name=f"shards:{path}"), None, on_event=said.append)
    assert (len(said), capfd.readouterr().err) == (1, "")
    assert (names(again), levels(again), again.fingerprint) == (names(first), [1, 2, 3], first.fingerprint)
    write("a.tar", numbered(1, 2, 3, 4))
    assert levels(shards(path)) == [1, 2, 3, 4]
    with pytest.raises(AvtError, match=r"^The shard \S*/a\.tar was changed after it was indexed\. Start the command again\.$"):
        first.train.read(0)
    path.unlink()
    with pytest.raises(AvtError, match=r"^\S*/a\.tar/0001\.png was listed and cannot be read now: No such file"):
        first.train.read(0)


@pytest.mark.parametrize("damage", ["truncated", "no JSON", "missing"])
def test_a_damaged_index_is_made_again(damage: str) -> None:
    path = write("a.tar", numbered(1, 2, 3))
    shards(path)
    (about,) = Path("cache").rglob("about.json")
    if damage == "truncated":
        os.truncate(about.parent / "names", 5)
    elif damage == "missing":
        (about.parent / "offsets").unlink()
    else:
        about.write_text("{")
    data = shards(path)

    assert (levels(data), data.train.labels.tolist()) == ([1, 2, 3], [1, 0, 1])


def test_an_index_that_another_computer_made_meanwhile_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = write("a.tar", numbered(1, 2, 3)), _shard_index.read_samples

    def read_by_two(*arguments: Any) -> Any:
        monkeypatch.setattr(_shard_index, "read_samples", read)
        with monkeypatch.context() as patch:
            patch.setattr(_shard_index, "FileLock", contextlib.nullcontext)  # as where a lock does not reach
            other.append(shards(path))
        return read(*arguments)

    other = list[ImageData]()
    monkeypatch.setattr(_shard_index, "read_samples", read_by_two)
    data = shards(path)

    assert levels(data) == levels(other[0]) == [1, 2, 3]
    assert data.fingerprint == other[0].fingerprint
    assert len([found for found in Path("cache/avt/shards").iterdir() if found.is_dir()]) == 1


def test_what_no_command_has_used_for_long_leaves_the_cache() -> None:
    cache, long_ago = Path("cache/avt/shards"), time.time() - 91 * 86_400
    for name in ("a.tar", "b.tar"):
        shards(write(name, numbered(1)))
    (cache / "tmp-of-a-killed-writer").mkdir()
    for path in cache.iterdir():
        os.utime(path, (long_ago, long_ago))
    shards(Path("b.tar").absolute())
    shards(write("c.tar", numbered(1, 2)))

    assert len([path for path in cache.iterdir() if path.is_dir()]) == 2
    with pytest.raises(pytest.fail.Exception, match="indexing 1 shards"):
        shards(Path("a.tar").absolute(), notify=pytest.fail)
    assert levels(shards(Path("b.tar").absolute(), notify=pytest.fail)) == [1]


def test_a_reader_process_is_sent_the_place_of_the_index_and_not_its_columns() -> None:
    data = shards(write("a.tar", numbered(*range(1, 200))))
    data.train.labels = None
    sent = pickle.dumps(data.train)
    received = pickle.loads(sent).index

    assert len(sent) < 1500  # the columns have 48 bytes an image
    for name, column in data.train.index.columns.items():
        assert isinstance(received.columns[name], np.memmap)
        assert np.array_equal(received.columns[name], column)
    shutil.rmtree("cache")
    with pytest.raises(AvtError, match=r"^The index of the shards in \S+ was deleted or damaged\. Start the command again\.$"):
        pickle.loads(sent)


def test_a_cache_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("a.tar", numbered(1))
    Path("file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path("file").absolute()))

    with pytest.raises(AvtError, match=r"cannot be kept in \S*/file/avt/shards: Not a directory\. Set XDG_CACHE_HOME to"):
        shards(path)


def test_the_fingerprint_follows_the_images_and_not_the_shards() -> None:
    before = shards(write("a.tar", numbered(1, 2, 3, 4)))
    write("there/b-0.tar", numbered(1, 2))
    write("there/b-1.tar", numbered(3, 4))
    again = shards(Path.cwd() / "there" / "b-{0..1}.tar")
    others = [
        shards(write("c.tar", members)).fingerprint
        for members in (
            numbered(1, 2, 3),
            numbered(1, 2, 4, 3),
            [*numbered(1, 2, 3), ("0004.png", image(4)), ("0004.cls", b"1")],
        )
    ]

    assert names(again) == ["b-0.tar/0001.png", "b-0.tar/0002.png", "b-1.tar/0003.png", "b-1.tar/0004.png"]
    assert again.fingerprint == before.fingerprint
    assert len({before.fingerprint, *others}) == 4


# what is not right


def test_a_shard_that_is_cut_anywhere_is_refused() -> None:
    content, cut = write("a.tar", numbered(1, 2)).read_bytes(), Path.cwd() / "cut.tar"
    end = 8 * 512  # two samples of two members of two blocks each
    assert content[end - 512 :].strip(b"\0") == b"0\n"
    for length in (*range(0, end + 1, 512), *range(100, end, 700), end + 100):
        cut.write_bytes(content[:length])
        with pytest.raises(AvtError, match=r"^The shard \S*/cut\.tar is no complete tar file: .*Copy it again, or leave"):
            shards(cut)
    cut.write_bytes(content[: end + 512])
    assert len(shards(cut).train) == 2


@pytest.mark.parametrize("place", [0, 124, 148, 156, 1024])
def test_a_damaged_header_is_refused(place: int) -> None:
    path = write("a.tar", numbered(1, 2))
    content = bytearray(path.read_bytes())
    content[place] ^= 0x55
    path.write_bytes(content)
    with pytest.raises(AvtError, match=r"a\.tar is no complete tar file"):
        shards(path)


@pytest.mark.parametrize(("packed", "name"), [(gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz")])
def test_a_compressed_shard_is_refused_with_what_to_do(packed: Any, name: str) -> None:
    path = write("a.tar", numbered(1))
    path.write_bytes(packed(path.read_bytes()))
    with pytest.raises(AvtError, match=rf"a\.tar is compressed with {name}, .* Unpack it to a plain \.tar file"):
        shards(path)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", image(1)), ("a.png", image(2))], r"has the member a\.png twice\. Write each file once"),
        (
            [*numbered(1, 2), ("0001.json", b"{}")],
            r"a\.tar has the key 0001 in two places\. .*: write the shard sorted",
        ),
        ([("x/a.png", image(1)), ("y/a.png", image(1)), ("x/a.cls", b"1")], r"has the key x/a in two places"),
        ([("a.png", image(1)), ("a.json", b"{")], r"a\.tar: the member a\.json is no JSON: .* Write the shard again"),
        ([("a.npy", b"1"), ("b.cls", b"1")], r"have no images \(others: \.npy, samples without an image\)\. Expected plain"),
        ([], r"have no images\. Expected plain"),
    ],
)
def test_what_is_no_shard_of_samples_is_refused(members: Members, message: str) -> None:
    with pytest.raises(AvtError, match=message):
        shards(write("a.tar", members))


def test_each_damaged_image_is_refused_by_its_name() -> None:
    found = [(f"{i}.{name.rpartition('.')[2]}", content) for i, (name, content) in enumerate(damaged())]
    data = shards(write("a.tar", found))

    assert len(data.train) == len(found)
    for i, (name, _) in enumerate(found):
        with pytest.raises(AvtError, match=rf"^\S*/a\.tar/{name} (does not decode|states more than 50)"):
            data.train.read(i)


# a run


def test_a_run_on_shards_equals_one_on_the_same_images_in_a_folder(tmp_path: Path) -> None:
    """Odd and damaged images in two classes; the run on shards is stopped within an epoch and resumed."""
    contents = [*([*usable()][:12] * 3), *[*damaged()][10:14]]
    files = [(f"{'ab'[i // 22]}/{i:02}.{name.rpartition('.')[2]}", content) for i, (name, content) in enumerate(contents)]
    for name, content in files:
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(content)
    members = [part for name, content in files for part in ((name, content), (f"{name[:4]}.cls", name[:1].encode()))]
    write("s-0.tar", members[:30])
    write("s-1.tar", members[30:])
    theirs, ours = folder(tmp_path / "photos"), shards(tmp_path / "s-*.tar")
    assert [name.partition("/")[2] for name in names(ours)] == names(theirs)
    assert torch.equal(partition(ours).held_out, partition(theirs).held_out)

    settings: dict[str, Any] = {"max_bad_fraction": 0.5, "augment": {"resize": 36, "crop": 32}, "limit_train": None}
    specs = {"folder": f"folder:{tmp_path}/photos", "shards": f"shards:{tmp_path}/s-{{0..1}}.tar"}
    run_tiny(tmp_path / "shards", dataset={"name": specs["shards"]}, max_steps=4, eval_every=2, **settings)
    for source, spec in specs.items():
        run_tiny(tmp_path / source, dataset={"name": spec}, resume=source == "shards", eval_every=2, **settings)
    ends = {source: max((tmp_path / source / "checkpoints").iterdir()) for source in specs}

    assert ends["shards"].name == ends["folder"].name > "step-0000000004"
    for file in ends["folder"].glob("*.safetensors"):
        assert (ends["shards"] / file.name).read_bytes() == file.read_bytes()
    assert (tmp_path / "shards" / "metrics.jsonl").read_text() == (tmp_path / "folder" / "metrics.jsonl").read_text()


def test_shards_are_checked_and_probed_by_the_commands(avt: Any) -> None:
    def samples(count: int) -> Members:
        for i in range(count):
            yield from ((f"{i}.png", image(i, side=40)), (f"{i}.cls", b"%d" % (i % 2)))

    write("train.tar", samples(12))
    write("test.tar", samples(6))
    small = "-o backbone.width=0.05 --batch-size 4 --max-steps 2 --workers 0 --device cpu"
    made = avt(f"pretrain --dataset shards:train.tar -o dataset.test=test.tar {small} --out run")
    checked = avt("data check shards:*n.tar --workers 0 --json")
    probed = avt("probe run --head knn --no-baseline --workers 0 --device cpu --json")

    assert (made.code, "splits: train and test" in made.stderr) == (0, True)
    (train,) = checked.json["splits"]
    assert (train["images"], train["classes"], train["modes"], train["bad"]) == (12, 2, {"PNG RGB": 12}, [])
    assert probed.json["results"][0]["train_images"] == 12, probed.stderr


def test_a_label_of_minus_one_is_none() -> None:
    path = write("a.tar", [("a.png", image(1)), ("a.cls", b"-1"), ("b.png", image(2)), ("b.cls", b"0")])
    data = shards(path)

    assert (data.classes, data.train.labels.tolist()) == (("0",), [-1, 0])
