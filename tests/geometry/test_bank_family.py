"""A family that samples from a bank."""

import torch

from avtcli import registry
from avtcli.geometry.bank_family import BankFamily
from avtcli.seeding import keyed_generator

SIZE = (32, 32)


def test_a_bank_samples_all_of_its_rows_and_no_others() -> None:
    family = registry.build("transform", "projective", {})
    rows = family.sample(20, SIZE, keyed_generator("rows")).float()
    sampled = BankFamily(family, rows).sample(400, SIZE, keyed_generator("samples"))

    assert sampled.dtype == torch.float64
    assert {tuple(row) for row in sampled.tolist()} == {tuple(row) for row in rows.tolist()}


def test_all_but_sampling_is_delegated_to_the_family() -> None:
    family = registry.build("transform", "projective", {})
    rows = family.sample(5, SIZE, keyed_generator("rows"))
    bank, images = BankFamily(family, rows), torch.rand(5, 1, *SIZE)

    assert (bank.kind, bank.names, bank.units, bank.dof) == (family.kind, family.names, family.units, 16)
    assert torch.equal(bank.apply(images, rows), family.apply(images, rows))
    assert torch.equal(bank.target(rows, SIZE), family.target(rows, SIZE))
    target = family.target(rows, SIZE)
    assert torch.equal(bank.decode(target, SIZE), family.decode(target, SIZE))
    assert torch.equal(bank.in_from_out(rows, SIZE), family.in_from_out(rows, SIZE))
