"""Held-out images: the rule against an independent computation, and what adding a file changes."""

import os
import random
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
import torch

from avtcli.contracts import ImageData, MemorySplit
from avtcli.data.held_out import contains, limited, partition
from avtcli.errors import AvtError
from avtplugins.datasets._encoded import encoded_data
from avtplugins.datasets._image_files import FileSplit, write_listing


def files_of(names: list[bytes]) -> ImageData:
    split = FileSplit(Path("nowhere"), write_listing((name, 1, 0) for name in names))
    return encoded_data(split, None, classes=None, mean=(0.5,) * 3, std=(0.5,) * 3)


def arrays_of(train: int, test: int | None = None) -> ImageData:
    parts = [
        None if n is None else MemorySplit(torch.zeros(n, 1, 1, 1, dtype=torch.uint8), None, prefix="x") for n in (train, test)
    ]
    assert parts[0] is not None
    return ImageData(parts[0], parts[1], 1, (1, 1), mean=(0.5,), std=(0.5,), classes=None, fingerprint="x")


def number_of(key: bytes) -> int:
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "little")


def held_out_names(names: list[bytes]) -> set[bytes]:
    """Those below a twentieth of 2^64, at most the lowest 1 000, at least two."""
    ordered = sorted(names, key=number_of)
    below = sum(20 * number_of(name) < 2**64 for name in ordered)
    return set(ordered[: max(2, min(below, 1000))])


def found_names(names: list[bytes]) -> set[bytes]:
    data = files_of(names)
    return {os.fsencode(data.train.name(i)) for i in partition(data).held_out.tolist()}


NAMES = [b"%d/n\xc3\xa9 \xff%d.png" % (i % 7, i * i) for i in range(30_000)]


@pytest.mark.parametrize(("count", "least", "most"), [(4, 2, 2), (40, 2, 5), (3000, 120, 180), (30_000, 1000, 1000)])
def test_files_are_held_out_by_the_hash_of_their_names(count: int, least: int, most: int) -> None:
    parts = partition(files_of(NAMES[:count]))

    assert found_names(NAMES[:count]) == held_out_names(NAMES[:count])
    assert least <= len(parts.held_out) <= most
    assert sorted([*parts.train.tolist(), *parts.held_out.tolist()]) == list(range(count))
    assert parts.train.diff().min() > 0
    assert parts.held_out.diff().min() > 0


def test_images_without_file_names_are_held_out_by_their_index() -> None:
    expected = {int(key) for key in held_out_names([str(i).encode() for i in range(2000)])}

    assert set(partition(arrays_of(2000)).held_out.tolist()) == expected


def test_of_equal_names_the_first_are_held_out() -> None:
    """Members of shards may share their names: of three with the 334th lowest hash one fits."""
    hashes = np.array([k % 1500 for k in range(4500)], "<u8") * 2**50
    data = arrays_of(4500)
    data.train.name_hashes = lambda: hashes  # type: ignore[method-assign]
    first = sorted(range(4500), key=lambda i: (hashes[i], i))[:1000]

    assert partition(data).held_out.tolist() == sorted(first)


def test_a_file_that_is_added_moves_no_other() -> None:
    """In any place and order; of more than 1 000 held-out files at most one returns to training."""
    some = NAMES[:2000]
    for new in (b"0.png", b"zzz.png", *NAMES[2000:2040]):
        assert found_names(sorted([*some, new])) - {new} == found_names(some)
    mixed = random.Random(0).sample(NAMES, len(NAMES))
    more = found_names([*mixed, *(b"more%d.png" % i for i in range(20))])
    assert found_names(mixed) == found_names(NAMES)
    assert not {name for name in more if not name.startswith(b"more")} - found_names(mixed)


def test_a_limit_draws_from_what_is_not_held_out() -> None:
    parts = partition(arrays_of(200))
    held, most = set(parts.held_out.tolist()), len(parts.train)

    for limit in (2, 50, most):
        drawn = limited(parts.train, limit).tolist()
        assert (len(set(drawn)), set(drawn) & held) == (limit, set())
    with pytest.raises(AvtError, match=rf"--limit-train {most + 1} is more than the {most} images .*Leave it out"):
        limited(parts.train, most + 1)


def test_with_a_test_split_no_training_image_is_held_out_and_the_last_ones_drawn_are_monitored() -> None:
    parts = partition(arrays_of(3000, 50))
    monitored = set(parts.to_monitor(1000).tolist())

    assert (parts.name, parts.train.tolist(), parts.held_out.tolist()) == ("test", list(range(3000)), list(range(50)))
    assert len(monitored) == 1000
    assert monitored.isdisjoint(limited(parts.train, 2000).tolist())
    assert len(monitored & set(limited(parts.train, 2001).tolist())) == 1
    assert [len(partition(arrays_of(n, 5)).to_monitor(1000)) for n in (1, 2, 7, 900)] == [1, 1, 4, 450]


def test_an_empty_test_split_is_none() -> None:
    data = arrays_of(100, 0)

    assert torch.equal(partition(data).held_out, partition(replace(data, test=None)).held_out)


def test_what_is_contained_is_found_as_torch_does() -> None:
    indices, searched = torch.tensor([2, 3, 5, 8, 13]), torch.tensor([13, 1, 2, 4, 14, 8])

    assert (
        contains(indices, searched).tolist()
        == torch.isin(searched, indices).tolist()
        == [True, False, True, False, False, True]
    )
    assert contains(torch.tensor([4]), torch.tensor([], dtype=torch.long)).tolist() == []


def test_too_few_images_to_hold_any_out_are_refused() -> None:
    with pytest.raises(AvtError, match=r"has 3 images and no test split: it needs 4 or more, as 2 are held out"):
        partition(arrays_of(3))
