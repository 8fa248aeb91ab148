"""What is drawn for each sample of an epoch, against draws written out by hand."""

import threading
from collections.abc import Iterator

import pytest
import torch

from avtcli import registry
from avtcli.config.components import Augment
from avtcli.contracts import MemorySplit, Size, TransformFamily
from avtcli.data.epoch_table import BLOCK, sample_epoch_table
from avtcli.data.resident_images import ResidentImages
from avtcli.data.training_loader import Batch, TrainingLoader, ViewSpec, _ahead
from avtcli.seeding import keyed_generator

CPU, SIZE = torch.device("cpu"), (2, 2)
MANY = BLOCK + 1000


def rotation() -> TransformFamily:
    family: TransformFamily = registry.build("transform", "rotation", {})
    return family


def test_the_rows_of_a_single_block_are_those_of_the_samples() -> None:
    table, family = sample_epoch_table(3, 7, 50, rotation(), SIZE), rotation()
    parameters = family.sample(50, SIZE, keyed_generator(3, 7, "transform"))
    uniforms = torch.rand(50, 3, generator=keyed_generator(3, 7, "crop and flip"), dtype=torch.float64)
    positions = torch.tensor([0, 4, 5, 49])
    samples = table.order[positions]

    assert torch.equal(table.order, torch.randperm(50, generator=keyed_generator(3, 7, "order")))
    for found, expected in zip(table.transformed.read(positions), (parameters, family.target(parameters, SIZE)), strict=True):
        assert torch.equal(found, expected[samples])
    assert torch.equal(table.uniforms.read(positions)[0], uniforms[samples])


def test_each_block_of_positions_has_its_own_draws_by_the_order_of_its_samples() -> None:
    table = sample_epoch_table(3, 7, MANY, rotation(), SIZE)
    assert sorted(table.order.tolist()) == list(range(MANY))
    rows = {}
    for number, (first, last) in enumerate([(0, BLOCK), (BLOCK, MANY)]):
        generator = keyed_generator(3, 7, "crop and flip", *[number] * (number > 0))
        drawn = torch.rand(last - first, 3, generator=generator, dtype=torch.float64)
        rows |= zip(sorted(table.order[first:last].tolist()), drawn.tolist(), strict=True)
    positions = torch.arange(BLOCK - 500, BLOCK + 500)

    assert table.uniforms.read(positions)[0].tolist() == [rows[i] for i in table.order[positions].tolist()]


def read(
    start: int, stop: int, *, batch_size: int = 1000, rank: int = 0, world: int = 1, device: torch.device = CPU
) -> list[Batch]:
    """Batches of numbered images of one pixel, cropped from a black border."""
    images = (torch.arange(MANY) % 251 + 4).to(torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)
    resident = ResidentImages(MemorySplit(images, None, prefix="x"), torch.arange(MANY), device=device)
    augment = Augment(padding=2, flip=False)
    spec = ViewSpec(("original", "transformed"), rotation(), augment, SIZE, lambda x: x, 0)
    return list(TrainingLoader(resident, spec, batch_size=batch_size, device=device, rank=rank, world=world).read(start, stop))


@pytest.mark.parametrize(
    ("start", "batch_size", "world"),
    [(0, 2000, 1), (131, 1000, 1), (132, 1000, 1), (131, 1000, 2), (64, 2000, 3)],  # batch 131 of 1 000 lies in both blocks
)
def test_a_sample_gets_the_same_whatever_the_start_the_batches_and_the_processes(
    start: int, batch_size: int, world: int
) -> None:
    first, whole = start * batch_size, read(0, 133)
    shares = [read(start, -(-MANY // batch_size), batch_size=batch_size, rank=rank, world=world) for rank in range(world)]
    columns = [("indices",), ("views", 0), ("views", 1), ("targets", 0, "values"), ("targets", 0, "parameters")]
    for path in columns:
        expected = torch.cat([_part(batch, path) for batch in whole])[first:]
        found = []
        for parts in zip(*shares, strict=True):
            joined = torch.cat([_part(part, path) for part in parts])
            places = torch.cat([torch.arange(parts[0].count)[rank::world] for rank in range(world)])
            found.append(joined[places.argsort()])
        assert torch.equal(torch.cat(found), expected), path


def _part(batch: Batch, path: tuple[str | int, ...]) -> torch.Tensor:
    found: object = batch
    for step in path:
        found = found[step] if isinstance(step, int) else getattr(found, step)  # type: ignore[index]
    assert isinstance(found, torch.Tensor)
    return found


def test_a_start_draws_no_more_than_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it takes the same time and memory at every position of an epoch of any length."""
    family, drawn = rotation(), list[int]()
    sample = type(family).sample

    def counted(self: TransformFamily, n: int, size: Size, generator: torch.Generator) -> torch.Tensor:
        drawn.append(n)
        return sample(self, n, size, generator)

    monkeypatch.setattr(type(family), "sample", counted)
    table = sample_epoch_table(0, 0, 3 * BLOCK + 5, family, SIZE)
    assert drawn == []
    table.transformed.read(torch.arange(2 * BLOCK + 7, 2 * BLOCK + 300))
    assert drawn == [BLOCK]
    table.transformed.read(torch.arange(3 * BLOCK - 2, 3 * BLOCK + 3))
    table.transformed.read(torch.tensor([3 * BLOCK + 4]))
    assert drawn == [BLOCK, 5]


def test_what_is_made_ahead_comes_in_order_while_the_one_before_is_used() -> None:
    begun = threading.Event()

    def items() -> Iterator[int]:
        yield 0
        begun.set()
        yield 1
        raise ValueError("no more")

    ahead = _ahead(items())
    for expected in (0, 1):
        assert next(ahead) == expected
        assert begun.wait(10)
    with pytest.raises(ValueError, match="no more"):
        next(ahead)
