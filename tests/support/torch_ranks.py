"""One of two ranks of torch.distributed (gloo) with uneven shares of a batch; rank 0 prints what came out as JSON.

python tests/support/torch_ranks.py RANK FILE SHARE0 SHARE1
"""

import json
import sys

import numpy as np
import torch
from torch import distributed, nn

FEATURES = 4


def batch(rows):
    rng = np.random.default_rng(7)
    return rng.standard_normal((rows, FEATURES)) * 2 + 1, rng.standard_normal((rows, FEATURES))


def gradients(network, x, t):
    """Of the mean over rows of the squared distance, by gamma and beta."""
    loss = ((network(torch.as_tensor(x)) - torch.as_tensor(t)) ** 2).sum(dim=1).mean()
    loss.backward()
    return [p.grad.tolist() for p in network.parameters()]


def tried(run):
    try:
        return run()
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]


def main():
    rank, file, *shares = sys.argv[1:]
    rank, shares = int(rank), list(map(int, shares))
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    x, t = batch(sum(shares))
    mine = slice(0, shares[0]) if rank == 0 else slice(shares[0], None)
    sync = nn.SyncBatchNorm(FEATURES, dtype=torch.float64)
    ddp = nn.parallel.DistributedDataParallel(nn.BatchNorm1d(FEATURES, dtype=torch.float64))
    found = {
        "whole batch": gradients(nn.BatchNorm1d(FEATURES, dtype=torch.float64), x, t),
        "SyncBatchNorm": tried(lambda: gradients(sync, x[mine], t[mine])),
        "DistributedDataParallel": tried(lambda: gradients(ddp, x[mine], t[mine])),
    }
    if rank == 0:
        print(json.dumps(found))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
