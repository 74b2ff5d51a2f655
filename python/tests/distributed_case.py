"""What the checks of riffle.torch.distributed share: the process's place in the group, shards, and comparisons on the bits."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from reference import DISTRIBUTIONS

world = SimpleNamespace(rank=-1, ranks=1)  # set by distributed_program.py
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
CHECKS = []
digest = hashlib.sha256()


def check(function):
    """Each rank of distributed_program.py runs it."""
    CHECKS.append(function)
    return function


def refused(error, text, function, *args, **options):
    with pytest.raises(error, match=text):
        function(*args, **options)


def bits(x):
    return x.detach().contiguous().view(torch.uint8)


def same(got, expected):
    """Whether results have the bits expected. They go into the digest."""
    for a, b in zip(got, expected, strict=True):
        digest.update(bits(a).numpy().tobytes())
        assert a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b)), (a, b)


def cuts(n, kind):
    """Where each rank's columns begin, and where the last one's end."""
    inner = {"even": [n * r // world.ranks for r in range(1, world.ranks)], "uneven": [n // 3 * r // world.ranks for r in range(1, world.ranks)],
             "first empty": [0] + [n * r // world.ranks for r in range(2, world.ranks)], "last empty": [n] * (world.ranks - 1)}  # fmt: skip
    return [0, *inner[kind], n]


KINDS = ["even", "uneven", "first empty", "last empty"]


def shard(x, kind, dim=-1):
    at = cuts(x.shape[dim], kind)
    return x.narrow(dim, at[world.rank], at[world.rank + 1] - at[world.rank])


def sizes_of(n, kind):
    return np.diff(cuts(n, kind)).tolist()


def tensor(name, shape, dtype, seed=0):
    x = DISTRIBUTIONS[name](np.random.default_rng(seed), shape)
    if name == "denormals" and dtype != torch.float16:
        x = x * 2.0 ** (-149 + 24 if dtype == torch.float32 else -133 + 24)
    return torch.from_numpy(x.astype(np.float32)).to(dtype)
