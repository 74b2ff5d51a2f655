"""Checks of riffle.torch.distributed's topk, linear_top_k and sample: the bits of the call on the whole, and errors."""

import itertools

import numpy as np
import riffle
import riffle.torch
import riffle.torch.distributed as sharded
import torch
import torch.distributed as dist
from distributed_case import FLOATS, KINDS, bits, check, digest, refused, same, shard, sizes_of, tensor, world
from reference import DISTRIBUTIONS

# ---- topk


@check
def topk_of_every_distribution():
    for number, (dtype, name, k) in enumerate(itertools.product(FLOATS, DISTRIBUTIONS, (1, 64, 300))):
        x, kind, largest = tensor(name, (3, 300), dtype), KINDS[number % 7 % 4], number % 5 % 2 == 0
        same(sharded.topk(shard(x, kind), k, largest=largest, sizes=sizes_of(300, kind)), riffle.torch.topk(x, k, largest=largest))


@check
def topk_of_every_dtype():
    for dtype in riffle.torch._topk._DTYPES:
        x = torch.from_numpy(np.random.default_rng(1).integers(0, 9, (2, 5, 77))).to(dtype)
        same(sharded.topk(shard(x, "uneven"), 33), riffle.torch.topk(x, 33))


@check
def topk_of_ties_across_shards():
    x = torch.zeros(2, 5000)
    x[:, ::7] = 1  # 715 equal ones on all ranks
    for k in (1, 500, 714, 715, 716, 2000):
        values, indices = sharded.topk(shard(x, "uneven"), k)
        same((values, indices), riffle.torch.topk(x, k))
        assert indices[0, : min(k, 715)].tolist() == list(range(0, 5000, 7))[:k]


@check
def topk_of_axes_strides_and_out():
    x = tensor("few values", (4, 90, 3), torch.float32)
    same(sharded.topk(shard(x, "even", 1), 50, 1), riffle.torch.topk(x, 50, 1))
    same(sharded.topk(shard(x, "uneven", 1), 5, dim=-2, largest=False, sorted=True), riffle.torch.topk(x, 5, -2, False))
    same(sharded.topk(shard(x[:, :, 0], "even"), 50), riffle.torch.topk(x[:, :, 0], 50))
    same(sharded.topk(shard(x[1, :, 1], "even"), 0), riffle.torch.topk(x[1, :, 1], 0))
    same(sharded.topk(shard(x[1, :, 1], "even"), 90), riffle.torch.topk(x[1, :, 1], 90))
    same(sharded.topk(shard(x[:0, :, 1], "even"), 9), riffle.torch.topk(x[:0, :, 1], 9))
    out = torch.empty(4, 7, 3), torch.empty(4, 7, 3, dtype=torch.int64)
    result = sharded.topk(shard(x, "even", 1), 7, 1, out=out)
    assert result[0] is out[0] and result[1] is out[1]
    same(out, riffle.torch.topk(x, 7, 1))


@check
def linear_top_k_equals_unsharded():
    for dtype in FLOATS:
        generator = torch.Generator().manual_seed(5)
        x, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((5, 48), (700, 48), (700,)))
        weight[600] = weight[3]  # ties across shards
        bias[600] = bias[3]
        x, weight = x.to(dtype), weight.to(dtype)
        for kind in KINDS:
            for k in (1, 40, 500):
                whole = riffle.torch.linear_top_k(x, weight, k, bias=bias)
                same(sharded.linear_top_k(x, shard(weight, kind, 0), k, bias=shard(bias, kind)), whole)
        transposed = weight.T.contiguous().T
        same(sharded.linear_top_k(x, shard(transposed, "uneven", 0), 9), riffle.torch.linear_top_k(x, weight, 9))


# ---- sample


def both(logits, kind, sizes=None, **options):
    return sharded.sample(shard(logits, kind), sizes=sizes, **options), riffle.torch.sample(logits, **options)


FILTERS = [dict(top_k=50), dict(top_k=50, top_p=0.9), dict(top_k=50, min_p=0.05, temperature=0.5), dict(top_k=1), dict(temperature=0),
           dict(top_k=40, top_p=0.8, min_p=0.02, temperature=1.7), dict(top_k=2500, top_p=0.99), dict(temperature=1e30, top_k=9),
           dict(), dict(top_p=0.9), dict(min_p=0.01), dict(top_k=10**12), dict(temperature=1e-30), dict(top_p=0.0, top_k=7)]  # fmt: skip


@check
def sample_draws_the_same_tokens():
    for dtype in FLOATS:
        for n in (900, 20000):
            logits = (tensor("normal", (6, n), torch.float32, seed=n) * 3).to(dtype)
            for number, options in enumerate(FILTERS):
                kind = KINDS[number % len(KINDS)]
                for seed, sizes in ((0, None), (2**63 + 5, sizes_of(n, kind))):
                    same(*([x] for x in both(logits, kind, sizes, seed=seed, **options)))


@check
def sample_of_many_draws():
    """Flat logits with ties by the hundred and infinities; thousands of rows, each with its own draw."""
    for dtype in FLOATS:
        logits = tensor("few values", (1, 3000), dtype).repeat(600, 1)
        logits[:200, 5::11] = -torch.inf
        logits[200:300, 1000:1010] = torch.inf
        logits[300, :] = 0
        position = torch.arange(600)
        for options in (dict(top_k=300), dict(top_k=300, top_p=0.7), dict(top_k=20), dict(top_p=0.6)):
            tokens, expected = both(logits, "uneven", seed=3, stream=7, position=position, **options)
            same([tokens], [expected])
            assert len(set(tokens[301:].tolist())) > 15


@check
def sample_of_a_row_each_its_own():
    logits = tensor("normal", (8, 5000), torch.float32) * 2
    options = dict(top_k=torch.tensor([0, 5, 1, 4999, 0, 300, 5000, 20]), top_p=torch.tensor([1, 0.5, 1, 0.9, 0.3, 1, 0.8, 0.9]),
                   min_p=torch.tensor([0.0, 0, 0, 0.1, 0, 0.01, 0, 0]), temperature=torch.tensor([1, 0.7, 2, 1, 0, 1.5, 1, 0]),
                   stream=torch.tensor([9, 8, 7, 6, 5, 4, 3, 2], dtype=torch.int32), position=torch.arange(8, dtype=torch.int16))
    for kind in KINDS:
        for seed in range(5):
            same(*([x] for x in both(logits, kind, seed=seed, **options)))
            same(*([x] for x in both(logits, kind, seed=seed, **{**options, "stream": None})))
    for shape in ((0, 5000), (3, 1)):
        same(*([x] for x in both(torch.zeros(shape), "last empty")))


@check
def sample_log_probabilities():
    for dtype in FLOATS:
        logits = (tensor("normal", (40, 20000), torch.float32, seed=2) * 4).to(dtype)
        logits[3, :7000] = -torch.inf
        logits[4, 19000:] = torch.inf
        logits[5, 0] = 60000
        for options in (dict(top_k=100), dict(temperature=0), dict(top_p=0.8)):
            for kind in KINDS:
                (tokens, got), (expected_tokens, expected) = both(logits, kind, return_logprobs=True, **options)
                same([tokens], [expected_tokens])
                digest.update(bits(got).numpy().tobytes())
                assert got.dtype == torch.float32
                if "top_p" in options:
                    same([got], [expected])
                off = (got.double() - expected.double()).abs()
                ulp = np.spacing(np.maximum(expected.abs().numpy(), 1e-30))
                assert (off.numpy() <= 2e-6 + ulp).all(), off.max()


@check
def sample_of_a_seed_for_each_row():
    logits = tensor("few values", (6, 5000), torch.float32)
    seeds = torch.tensor([3, 2**62, 0, 3, 17, 2**63 - 1])
    for kind in KINDS:
        for options in (dict(), dict(top_k=50, top_p=0.9), dict(top_k=torch.tensor([0, 40, 0, 4000, 7, 40]))):
            tokens, expected = both(logits, kind, seed=seeds, stream=5, **options)
            same([tokens], [expected])
            assert not torch.equal(sharded.sample(shard(logits, kind), seed=seeds.flip(0), stream=5, **options), tokens)
            wide = torch.tensor([2**64 - 1, 2**63, 5, 6, 7, 2**63 + 9], dtype=torch.uint64)
            same(*([x] for x in both(logits, kind, seed=wide, **options)))
    refused(RuntimeError, "seed differs between ranks 0 and 1", sharded.sample, logits[:2], seed=torch.tensor([1, world.rank]))
    refused(RuntimeError, "seed", sharded.sample, logits[:2], seed=torch.tensor([1, 2, 3]))


@check
def sample_goes_on_beside_rows_without_an_answer():
    """on_invalid="token": a NaN on any rank, or nothing above -inf on all of them, costs that row its token and no other."""
    for dtype in FLOATS:
        logits = (tensor("normal", (7, 5000), torch.float32) * 2).to(dtype)
        logits[1, 4000], logits[4, 0] = torch.nan, torch.nan
        logits[3] = -torch.inf
        logits[5, :2600] = -torch.inf
        bad = [1, 3, 4]
        for options in (dict(), dict(top_k=50), dict(top_p=0.9), dict(temperature=0), dict(top_k=torch.tensor([0, 9, 0, 9, 0, 9, 0]), seed=4)):
            for kind in KINDS:
                (tokens, got), (expected_tokens, expected) = both(logits, kind, on_invalid="token", return_logprobs=True, **options)
                same([tokens, sharded.sample(shard(logits, kind), on_invalid="token", **options)], [expected_tokens] * 2)
                assert (tokens < 0).nonzero().flatten().tolist() == bad and torch.equal(got.isnan(), expected.isnan())
                torch.testing.assert_close(got, expected, rtol=1e-6, atol=2e-6, equal_nan=True)
    refused(RuntimeError, "on_invalid differs between ranks 0 and 1", sharded.sample, logits, on_invalid="raise" if world.rank == 0 else "token")
    refused(RuntimeError, "on_invalid", sharded.sample, logits, on_invalid="skip")


# ---- errors


@check
def differing_arguments_are_named():
    x, logits = torch.zeros(2, 50), torch.zeros(2, 5000)
    refused(RuntimeError, "k differs between ranks 0 and 1: 3 and 4", sharded.topk, x, 3 + world.rank)
    refused(RuntimeError, "rows differs between ranks 0 and 1: 2 and 1", sharded.topk, x[: 2 - min(world.rank, 1)], 3)
    refused(RuntimeError, "largest differs", sharded.topk, x, 3, largest=world.rank == 0)
    refused(RuntimeError, "dtype differs", sharded.topk, x.to([torch.float32, torch.float16][min(world.rank, 1)]), 3)
    refused(RuntimeError, "k differs", sharded.linear_top_k, x, x, 1 + world.rank)
    for name, value in (("temperature", 1.0 + world.rank), ("top_k", torch.tensor([4, world.rank])), ("seed", world.rank)):
        refused(RuntimeError, f"{name} differs between ranks 0 and 1; it", sharded.sample, logits, **{name: value})


@check
def wrong_arguments():
    x, logits = torch.zeros(2, 50), torch.zeros(2, 5000)
    refused(RuntimeError, rf"selected index k out of range: {50 * world.ranks + 1} of {50 * world.ranks} columns", sharded.topk, x, 50 * world.ranks + 1)
    refused(RuntimeError, "selected index k out of range", sharded.topk, x, -1)
    refused(IndexError, "Dimension out of range", sharded.topk, x, 1, 2)
    refused(TypeError, "must be Tensor, not list", sharded.topk, [1.0], 1)
    refused(NotImplementedError, "bool", sharded.topk, x.bool(), 1)
    refused(NotImplementedError, "device meta", sharded.topk, x.to("meta"), 1)
    refused(RuntimeError, "has no derivative", sharded.topk, torch.zeros(2, 50, requires_grad=True), 1)
    refused(RuntimeError, "sizes has 1 elements", sharded.topk, x, 1, sizes=[50])
    refused(RuntimeError, rf"sizes\[{world.rank}\] = 49 but rank {world.rank} has 50 columns", sharded.topk, x, 1, sizes=[49] * world.ranks)
    refused(RuntimeError, r"sizes must be a sequence of ints, not 5", sharded.topk, x, 1, sizes=5)
    refused(RuntimeError, r"sizes\[0\] must be an int, not 'x'", sharded.topk, x, 1, sizes=["x"] * world.ranks)
    refused(RuntimeError, "negative", sharded.topk, x, 1, sizes=[-1] * world.ranks)
    refused(RuntimeError, f"k = 0 is not in 1..{50 * world.ranks}", sharded.linear_top_k, torch.zeros(1, 8), torch.zeros(50, 8), 0)
    refused(RuntimeError, "weight", sharded.linear_top_k, torch.zeros(1, 8), torch.zeros(50, 9), 1)
    refused(RuntimeError, "logits has shape", sharded.sample, logits[0])
    refused(RuntimeError, "no columns on any rank", sharded.sample, logits[:, :0])
    refused(RuntimeError, "float64", sharded.sample, logits.double())
    refused(RuntimeError, r"top_p.* = 2", sharded.sample, logits, top_p=2.0)
    refused(RuntimeError, r"top_k\[1\] = -1", sharded.sample, logits, top_k=torch.tensor([0, -1]))
    refused(TypeError, "unexpected argument 'logit_bias'", sharded.sample, logits, logit_bias=None)
    refused(TypeError, "logits", sharded.sample, [[1.0]])


@check
def bad_logits_are_named_by_their_unsharded_column():
    logits = torch.zeros(4, 5000)
    logits[2, 4321] = torch.nan
    for options in (dict(top_k=9), dict(temperature=0), dict(), dict(top_k=torch.tensor([0, 0, 9, 0])), dict(top_k=torch.tensor([9, 9, 0, 9]))):
        refused(RuntimeError, r"logits\[2, 4321\] is NaN", sharded.sample, shard(logits, "uneven"), **options)
    logits[2] = -torch.inf
    for options in (dict(top_k=9), dict(), dict(top_k=torch.tensor([0, 0, 9, 0]))):
        refused(RuntimeError, r"logits\[2\] has nothing to sample", sharded.sample, shard(logits, "uneven"), return_logprobs=True, **options)


@check
def groups():
    first = dist.new_group([0])
    x = tensor("normal", (2, 100), torch.float32)
    if world.rank == 0:
        assert torch.equal(sharded.topk(x, 7, group=first).indices, riffle.torch.topk(x, 7).indices)
        assert sharded.shard_sizes(100, first) == (100,)
    else:
        refused(RuntimeError, f"rank {world.rank}, is not in the group", sharded.topk, x, 7, group=first)
    assert sharded.shard_sizes(world.rank + 5) == tuple(range(5, 5 + world.ranks))
