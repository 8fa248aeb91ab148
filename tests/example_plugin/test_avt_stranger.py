"""The plugins pass the conformance checks, and their own tests."""

import pytest
import torch
from avt_stranger.laplace import stranger_laplace
from avt_stranger.residual import stranger_net
from torch.distributions import Laplace

from avtcli import registry
from avtcli.contracts import Target
from avtcli.errors import AvtError
from avtcli.plugin_kit import check_plugin


@pytest.mark.parametrize("name", ["stranger-net", "stranger-laplace", "stranger-npz", "stranger-csv"])
def test_the_plugins_pass_the_conformance_checks(name: str) -> None:
    assert [check for check in check_plugin(name) if not check.ok] == []


def test_the_loss_is_torchs_own_log_density() -> None:
    generator = torch.Generator().manual_seed(0)
    family = registry.build("transform", "projective", {})
    objective = stranger_laplace(vector_dim=4, family=family)
    codes = (torch.randn(5, 4, generator=generator), torch.randn(5, 4, generator=generator))
    values = torch.randn(5, family.dof, generator=generator)
    mean, log_var = objective.predict(codes).mean, objective.predict(codes).log_var
    expected = -Laplace(mean, (log_var.exp() / 2).sqrt()).log_prob(values).sum(1)

    loss = objective(codes, (Target(values, values, family, (32, 32)),))

    torch.testing.assert_close(loss.per_sample, expected)


def test_a_network_of_nothing_is_refused() -> None:
    with pytest.raises(AvtError, match="needs channels and blocks of 1 or more, found 16 and 0"):
        stranger_net(in_channels=1, blocks=0)
