"""A bank: a family that draws rows."""

import torch

from avtcli import registry
from avtcli.geometry.bank_family import BankFamily
from avtcli.seeding import keyed_generator

SIZE = (32, 32)


def test_a_bank_draws_its_own_rows_all_of_them_sooner_or_later() -> None:
    family = registry.build("transform", "projective", {})
    rows = family.sample(20, SIZE, keyed_generator("rows")).float()
    drawn = BankFamily(family, rows).sample(400, SIZE, keyed_generator("draws"))

    assert drawn.dtype == torch.float64
    assert {tuple(row) for row in drawn.tolist()} == {tuple(row) for row in rows.tolist()}


def test_everything_but_the_draw_is_the_familys() -> None:
    family = registry.build("transform", "projective", {})
    rows = family.sample(5, SIZE, keyed_generator("rows"))
    bank, images = BankFamily(family, rows), torch.rand(5, 1, *SIZE)

    assert (bank.kind, bank.names, bank.units, bank.dof) == (family.kind, family.names, family.units, 8)
    assert torch.equal(bank.apply(images, rows), family.apply(images, rows))
    assert torch.equal(bank.target(rows, SIZE), family.target(rows, SIZE))
    assert torch.equal(bank.decode(rows, SIZE), family.decode(rows, SIZE))
    assert torch.equal(bank.in_from_out(rows, SIZE), family.in_from_out(rows, SIZE))
