"""The same batch and the same uneven shares in PyTorch: on the whole batch, and over two of its own ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import libraries
import numpy as np
import pytest
import ranks

import bnengine as bn

PROGRAM = Path(__file__).with_name("support") / "torch_ranks.py"


def ours(x, t, shares):
    """[dgamma, dbeta] of the mean over rows of the squared distance, and y and dx, over ranks with these shares."""
    cuts = np.cumsum(shares)[:-1]
    parts = list(zip(np.split(x, cuts), np.split(t, cuts), strict=True))

    def run(communicator):
        own, target = parts[communicator.rank]
        gamma, beta = np.ones(x.shape[1]), np.zeros(x.shape[1])
        y, residuals = bn.batch_norm(own, gamma, beta, all_reduce=communicator.sum)
        dx, dgamma, dbeta = bn.batch_norm_backward(2 * (y - target) / len(x), residuals)
        return y, dx, communicator.sum(dgamma), communicator.sum(dbeta)

    found = ranks.together(len(shares), run)
    y, dx = (np.concatenate([rank[i] for rank in found]) for i in (0, 1))
    return y, dx, found[0][2], found[0][3]


@pytest.mark.parametrize("shares", [(6, 6), (1, 11), (3, 0, 9), (1, 1, 1, 9)])
def test_statistics_and_gradients_are_torchs_of_the_whole_batch(rng, shares):
    torch = libraries.need("torch")
    x, t = rng.standard_normal((12, 4)) * 2 + 1, rng.standard_normal((12, 4))
    whole = torch.nn.BatchNorm1d(4, dtype=torch.float64)
    inputs = torch.tensor(x, requires_grad=True)
    output = whole(inputs)
    ((output - torch.tensor(t)) ** 2).sum(dim=1).mean().backward()
    y, dx, dgamma, dbeta = ours(x, t, shares)
    np.testing.assert_allclose(y, output.detach(), atol=1e-13)
    np.testing.assert_allclose(dx, inputs.grad, atol=1e-13)
    np.testing.assert_allclose(dgamma, whole.weight.grad, atol=1e-13)
    np.testing.assert_allclose(dbeta, whole.bias.grad, atol=1e-13)


@pytest.mark.parametrize("shares", [(3, 9), (1, 11)])
def test_torchs_own_ranks_refuse_or_differ_where_shares_are_uneven(tmp_path, shares):
    libraries.need("torch")
    command = [sys.executable, str(PROGRAM)]
    started = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "meeting"), *map(str, shares)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for rank in (0, 1)
    ]
    said = [process.communicate(timeout=120)[0] for process in started]
    found = json.loads(said[0])
    rng = np.random.default_rng(7)
    x, t = rng.standard_normal((12, 4)) * 2 + 1, rng.standard_normal((12, 4))
    _, _, dgamma, dbeta = ours(x, t, shares)
    np.testing.assert_allclose([dgamma, dbeta], found["whole batch"], atol=1e-13)
    assert found["SyncBatchNorm"].startswith("ValueError: SyncBatchNorm expected input tensor to be on GPU")
    if 1 in shares:
        assert found["DistributedDataParallel"].startswith("ValueError: Expected more than 1 value per channel")
    else:  # the mean of the ranks' means
        assert np.abs(np.asarray(found["DistributedDataParallel"]) - [dgamma, dbeta]).max() > 0.1
