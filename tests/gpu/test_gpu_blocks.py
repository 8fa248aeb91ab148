"""What is drawn for an epoch of several blocks, on a GPU and on the CPU."""

import pytest
import torch

from tests.data.test_epoch_table import read

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]


def test_batches_on_a_gpu_are_those_on_the_cpu_also_where_one_lies_in_two_blocks() -> None:
    for found, expected in zip(read(130, 133, device=torch.device("cuda")), read(130, 133), strict=True):
        torch.testing.assert_close(found.views[0].cpu(), expected.views[0])
        assert torch.equal(found.targets[0].values.cpu(), expected.targets[0].values)
        assert torch.equal(found.targets[0].parameters.cpu(), expected.targets[0].parameters)
