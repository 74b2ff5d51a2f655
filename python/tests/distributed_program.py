"""What each rank of test_torch_distributed.py runs: every check below, against the call on the whole tensor in the same process.

Arguments: rank, number of ranks, and where they meet, a URL as torch.distributed has it. Rank "all" forks a process for each: the
modules are imported once. Each rank prints a line of JSON: for each check the text of its failure, or none, and a digest of all
results of sharded calls, which is to be the same on every rank.
"""

import datetime
import hashlib
import itertools
import json
import os
import sys
import traceback

import numpy as np
import pytest
import riffle
import riffle.torch
import riffle.torch.distributed as sharded
import torch
import torch.distributed as dist
from attention_case import BFLOAT16, F16, F32, Case
from frameworks import Torch
from reference import DISTRIBUTIONS

RANK, RANKS = -1, int(sys.argv[2])  # RANK: below
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
CHECKS = []
digest = hashlib.sha256()


def check(function):
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
    inner = {"even": [n * r // RANKS for r in range(1, RANKS)], "uneven": [n // 3 * r // RANKS for r in range(1, RANKS)],
             "first empty": [0] + [n * r // RANKS for r in range(2, RANKS)], "last empty": [n] * (RANKS - 1)}  # fmt: skip
    return [0, *inner[kind], n]


KINDS = ["even", "uneven", "first empty", "last empty"]


def shard(x, kind, dim=-1):
    at = cuts(x.shape[dim], kind)
    return x.narrow(dim, at[RANK], at[RANK + 1] - at[RANK])


def sizes_of(n, kind):
    return np.diff(cuts(n, kind)).tolist()


def tensor(name, shape, dtype, seed=0):
    x = DISTRIBUTIONS[name](np.random.default_rng(seed), shape)
    if name == "denormals" and dtype != torch.float16:
        x = x * 2.0 ** (-149 + 24 if dtype == torch.float32 else -133 + 24)
    return torch.from_numpy(x.astype(np.float32)).to(dtype)


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
def linear_top_k_is_the_whole():
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


# ---- paged attention

make = Torch().make


def part_of(case, mine, page_size=4):
    """Pages, lengths and tables of the keys of each sequence that `mine`, of a sequence's length, chooses."""
    part = Case([1], dim=case.k[0].shape[2], heads=(1, case.k[0].shape[1]))
    chosen = [mine(int(n)) for n in case.kv_lens]
    part.k, part.v = ([x[positions] for x, positions in zip(both, chosen)] for both in (case.k, case.v))
    part.kv_lens = np.array([len(k) for k in part.k], np.int32)
    part.page(page_size, np.random.default_rng(RANK))
    return [torch.from_numpy(x) if x.dtype != BFLOAT16 else make(x) for x in (part.keys, part.values, part.kv_lens, part.page_table)], chosen


def contiguous(kind):
    return lambda n: np.arange(n)[cuts(n, kind)[RANK] : cuts(n, kind)[RANK + 1]]


def interleaved(i):
    return lambda n: np.arange(n)[np.arange(n) // i % RANKS == RANK]


def attend(case, mine, **options):
    for name in ("sinks", "alibi_slopes"):
        if name in options:
            options[name] = torch.from_numpy(options[name])
    arguments, _ = part_of(case, mine)
    out, lse = sharded.paged_attention(make(case.q), *arguments, cu_q_lens=torch.from_numpy(case.cu_q_lens), return_lse=True, **options)
    for x in (out, lse):
        digest.update(bits(x).numpy().tobytes())
    return out, lse


def near(case, out, lse, expected, expected_lse, magnitude):
    """Against the softmax in float64, at the rounding of float32 sums and of q's dtype."""
    rounding = {F32: 0, F16: 2.0**-11, BFLOAT16: 2.0**-8}[case.q.dtype]
    assert out.dtype == make(case.q).dtype and lse.dtype == torch.float32
    assert (np.abs(out.double().numpy() - expected) <= 2e-5 * (1 + magnitude) + rounding * np.abs(expected)).all()
    np.testing.assert_allclose(lse.numpy(), expected_lse, rtol=1e-5, atol=2e-5)


VIEWS = [dict(), dict(causal=False), dict(window=5), dict(window=40, causal=False), dict(window=3, window_right=2, causal=False),
         dict(window_right=7, causal=False), dict(soft_cap=2.0), dict(scale=0.5, sinks=np.float32([1, -2, 0.5, 3]))]  # fmt: skip


@check
def attention_over_parts_is_the_whole():
    for number, dtypes in enumerate([(F32, F32), (BFLOAT16, BFLOAT16), (F16, F32), (F32, BFLOAT16)]):
        for q_lens in ([1] * 5, [7, 1, 12, 3, 1]):
            case = Case([50, 1, 12, 33, 64], q_lens, dtypes=dtypes, seed=number)
            for turn, options in enumerate(VIEWS):
                expected = case.reference(**options)
                i = (1, 4)[turn % 2]
                for mine, cut in ((contiguous(KINDS[(number + turn) % 4]), {}), (contiguous("uneven"), {}), (interleaved(i), {"interleave": i})):
                    near(case, *attend(case, mine, **options, **cut), *expected)


@check
def attention_of_one_sequence_and_of_none():
    case = Case([300], [64])
    for options in VIEWS:
        for kind in KINDS:
            near(case, *attend(case, contiguous(kind), **options), *case.reference(**options))
    case = Case([0, 9, 0, 1])
    for kind in KINDS:
        near(case, *attend(case, contiguous(kind)), *case.reference())
        near(case, *attend(case, contiguous(kind), window=3), *case.reference(window=3))
    empty = part_of(case, contiguous("even"))[0]
    none = torch.zeros(0, dtype=torch.int32)
    out, lse = sharded.paged_attention(torch.zeros(0, 4, 32), *empty[:2], none, empty[3][:0], return_lse=True)
    assert out.shape == (0, 4, 32) and lse.shape == (0, 4)


@check
def attention_with_masks_and_slopes():
    """Against one call over all keys, which the tests of attention hold against float64."""
    rng = np.random.default_rng(8)
    case = Case([50, 3, 12, 33, 64], [7, 1, 12, 3, 1])
    whole = [torch.from_numpy(x) for x in (case.q, case.keys, case.values, case.kv_lens, case.page_table)]
    cu_q_lens = torch.from_numpy(case.cu_q_lens)
    shown, added = torch.from_numpy(rng.random((24, 1, 64)) < 0.7), torch.from_numpy(rng.standard_normal((24, 4, 64)).astype(np.float32))
    slopes = torch.tensor([0.5, 0.1, 0, 1])
    flags = torch.tensor([True, False, True, False, True])
    options: dict
    for options in (dict(mask=shown), dict(mask=added, window=20), dict(mask=shown, causal=False), dict(alibi_slopes=slopes), dict(causal=flags),
                    dict(alibi_slopes=slopes, causal=flags, window=30), dict(alibi_slopes=slopes, sinks=torch.tensor([0.5, 1, 2, -1]))):  # fmt: skip
        expected, expected_lse = riffle.torch.paged_attention(*whole, cu_q_lens=cu_q_lens, return_lse=True, **options)
        for mine, cut in ((contiguous("uneven"), {}), (interleaved(2), {"interleave": 2})):
            if "alibi_slopes" in options and cut:
                continue
            arguments, chosen = part_of(case, mine)
            local: dict = dict(options)
            if "mask" in options:  # this rank's keys, in their order
                local["mask"] = options["mask"].new_zeros((*options["mask"].shape[:2], max(map(len, chosen)) + 1))
                for b, positions in enumerate(chosen):
                    rows = slice(cu_q_lens[b], cu_q_lens[b + 1])
                    local["mask"][rows, :, : len(positions)] = options["mask"][rows][:, :, positions]
            out, lse = sharded.paged_attention(whole[0], *arguments, cu_q_lens=cu_q_lens, return_lse=True, **local, **cut)
            torch.testing.assert_close(out, expected, rtol=1e-4, atol=2e-5)
            torch.testing.assert_close(lse, expected_lse, rtol=1e-5, atol=2e-5)


@check
def attention_of_other_pages():
    """int8 pages with scales, in another layout; into `out`."""
    case, scale = Case([50, 33], [3, 1]), np.float32(0.03125)
    case.k, case.v = ([np.clip(np.round(x / scale), -127, 127) * scale for x in both] for both in (case.k, case.v))
    (keys, values, kv_lens, page_table), _ = part_of(case, contiguous("uneven"))
    keys, values = ((x.nan_to_num() / scale).to(torch.int8).movedim(1, 2).contiguous() for x in (keys, values))
    out = torch.empty(case.q.shape, dtype=torch.float32)
    got, lse = sharded.paged_attention(torch.from_numpy(case.q), keys, values, kv_lens, page_table, cu_q_lens=torch.from_numpy(case.cu_q_lens),
                                       layout="NHD", key_scales=torch.tensor(scale), value_scales=float(scale), out=out, return_lse=True)  # fmt: skip
    assert got is out
    near(case, out, lse, *case.reference())


@check
def attention_refuses():
    case = Case([20, 30], [4, 2])
    arguments, _ = part_of(case, contiguous("even"))
    q, cu_q_lens = torch.from_numpy(case.q), torch.from_numpy(case.cu_q_lens)

    def call(**options):
        return sharded.paged_attention(q, *arguments, **{"cu_q_lens": cu_q_lens, **options})

    refused(RuntimeError, r"kv_lens\[0\] = 10 on rank 0; of 20 keys with interleave = 3 it holds" if RANKS == 2 else "with interleave = 3", call, interleave=3)
    refused(RuntimeError, "interleave = 0 is not at least 1", call, interleave=0)
    refused(RuntimeError, "alibi_slopes are not possible with interleave", call, interleave=1, alibi_slopes=torch.zeros(4))
    refused(RuntimeError, "window = 0", call, window=0)
    refused(RuntimeError, "window_right = 1 but causal is set", call, window_right=1)
    refused(RuntimeError, "causal has dtype torch.bool and shape", call, causal=torch.tensor([True]))
    refused(RuntimeError, "cu_q_lens = .* does not part 6 queries among 2 sequences", call, cu_q_lens=torch.tensor([0, 4, 5]))
    refused(RuntimeError, "sinks has shape", call, sinks=torch.zeros(3))
    refused(RuntimeError, "mask", call, mask=torch.ones(6, 1, 1, dtype=torch.bool))
    refused(RuntimeError, r"kv_lens\[1\] is .* on all ranks together, less than its 2 queries", sharded.paged_attention, q, *arguments[:2],
            torch.tensor([4, 1 if RANK == 0 else 0]), arguments[3], cu_q_lens=cu_q_lens)  # fmt: skip
    refused(RuntimeError, "layout", call, layout="HDN")
    refused(RuntimeError, "return_lse must be a bool", call, return_lse=1)
    refused(RuntimeError, "has no derivative", sharded.paged_attention, q.clone().requires_grad_(), *arguments, cu_q_lens=cu_q_lens)


# ---- errors


@check
def differing_arguments_are_named():
    x, logits = torch.zeros(2, 50), torch.zeros(2, 5000)
    refused(RuntimeError, "k differs between ranks 0 and 1: 3 and 4", sharded.topk, x, 3 + RANK)
    refused(RuntimeError, "rows differs between ranks 0 and 1: 2 and 1", sharded.topk, x[: 2 - min(RANK, 1)], 3)
    refused(RuntimeError, "largest differs", sharded.topk, x, 3, largest=RANK == 0)
    refused(RuntimeError, "dtype differs", sharded.topk, x.to([torch.float32, torch.float16][min(RANK, 1)]), 3)
    refused(RuntimeError, "k differs", sharded.linear_top_k, x, x, 1 + RANK)
    for name, value in (("temperature", 1.0 + RANK), ("top_k", torch.tensor([4, RANK])), ("seed", RANK)):
        refused(RuntimeError, f"{name} differs between ranks 0 and 1; it", sharded.sample, logits, **{name: value})


@check
def wrong_arguments():
    x, logits = torch.zeros(2, 50), torch.zeros(2, 5000)
    refused(RuntimeError, rf"selected index k out of range: {50 * RANKS + 1} of {50 * RANKS} columns", sharded.topk, x, 50 * RANKS + 1)
    refused(RuntimeError, "selected index k out of range", sharded.topk, x, -1)
    refused(IndexError, "Dimension out of range", sharded.topk, x, 1, 2)
    refused(TypeError, "must be Tensor, not list", sharded.topk, [1.0], 1)
    refused(NotImplementedError, "bool", sharded.topk, x.bool(), 1)
    refused(NotImplementedError, "device meta", sharded.topk, x.to("meta"), 1)
    refused(RuntimeError, "has no derivative", sharded.topk, torch.zeros(2, 50, requires_grad=True), 1)
    refused(RuntimeError, "sizes has 1 elements", sharded.topk, x, 1, sizes=[50])
    refused(RuntimeError, rf"sizes\[{RANK}\] = 49 but rank {RANK} has 50 columns", sharded.topk, x, 1, sizes=[49] * RANKS)
    refused(RuntimeError, r"sizes must be a sequence of ints, not 5", sharded.topk, x, 1, sizes=5)
    refused(RuntimeError, r"sizes\[0\] must be an int, not 'x'", sharded.topk, x, 1, sizes=["x"] * RANKS)
    refused(RuntimeError, "negative", sharded.topk, x, 1, sizes=[-1] * RANKS)
    refused(RuntimeError, f"k = 0 is not in 1..{50 * RANKS}", sharded.linear_top_k, torch.zeros(1, 8), torch.zeros(50, 8), 0)
    refused(RuntimeError, "weight", sharded.linear_top_k, torch.zeros(1, 8), torch.zeros(50, 9), 1)
    refused(RuntimeError, "logits has shape", sharded.sample, logits[0])
    refused(RuntimeError, "no columns on any rank", sharded.sample, logits[:, :0])
    refused(RuntimeError, "float64", sharded.sample, logits.double())
    refused(RuntimeError, r"top_p.* = 2", sharded.sample, logits, top_p=2.0)
    refused(RuntimeError, r"top_k\[1\] = -1", sharded.sample, logits, top_k=torch.tensor([0, -1]))
    refused(TypeError, "unexpected argument 'logit_bias'", sharded.sample, logits, logit_bias=None)
    refused(TypeError, "logits", sharded.sample, [[1.0]])


@check
def bad_logits_are_named_by_the_whole():
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
    if RANK == 0:
        assert torch.equal(sharded.topk(x, 7, group=first).indices, riffle.torch.topk(x, 7).indices)
        assert sharded.shard_sizes(100, first) == (100,)
    else:
        refused(RuntimeError, f"rank {RANK}, is not in the group", sharded.topk, x, 7, group=first)
    assert sharded.shard_sizes(RANK + 5) == tuple(range(5, 5 + RANKS))


def report(failures):
    # In one piece: the ranks may share a pipe.
    sys.stdout.write(json.dumps({"rank": RANK, "failures": failures, "digest": digest.hexdigest()}) + "\n")
    sys.stdout.flush()


def main():
    dist.init_process_group("gloo", init_method=sys.argv[3], rank=RANK, world_size=RANKS, timeout=datetime.timedelta(seconds=300))
    torch.set_num_threads(1)
    failures = {}
    for function in CHECKS:
        try:
            function()
            failures[function.__name__] = ""
        except Exception:
            failures[function.__name__] = traceback.format_exc()
            report(failures)
            os._exit(0)  # the others need not wait for this rank: their calls fail now
    report(failures)
    dist.barrier()
    dist.destroy_process_group()


def on_every_rank():
    """main() in a child process for each rank. Exits with what one of them has, if that is not 0."""
    global RANK
    children = []
    for rank in range(RANKS):
        RANK, child = rank, os.fork()
        if child == 0:
            main()
            sys.stdout.flush()
            os._exit(0)
        children.append(child)
    sys.exit(max(abs(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])) for child in children))


if __name__ == "__main__":
    if sys.argv[1] == "all":
        on_every_rank()
    else:
        RANK = int(sys.argv[1])
        main()
