"""Checks of riffle.torch.distributed.paged_attention: parts of the keys on each rank, against the softmax over all of them."""

import numpy as np
import riffle
import riffle.torch
import riffle.torch.distributed as sharded
import torch
from attention_case import BFLOAT16, F16, F32, Case
from distributed_case import KINDS, bits, check, cuts, digest, refused, world
from frameworks import Torch

make = Torch().make


def part_of(case, positions_of, page_size=4):
    """Pages, lengths and tables of this rank's keys of each sequence: those at positions_of(length)."""
    part = Case([1], dim=case.k[0].shape[2], heads=(1, case.k[0].shape[1]))
    chosen = [positions_of(int(n)) for n in case.kv_lens]
    part.k, part.v = ([x[positions] for x, positions in zip(both, chosen)] for both in (case.k, case.v))
    part.kv_lens = np.array([len(k) for k in part.k], np.int32)
    part.page(page_size, np.random.default_rng(world.rank))
    return [torch.from_numpy(x) if x.dtype != BFLOAT16 else make(x) for x in (part.keys, part.values, part.kv_lens, part.page_table)], chosen


def contiguous(kind):
    return lambda n: np.arange(n)[cuts(n, kind)[world.rank] : cuts(n, kind)[world.rank + 1]]


def interleaved(i):
    return lambda n: np.arange(n)[np.arange(n) // i % world.ranks == world.rank]


def attend(case, positions_of, **options):
    for name in ("sinks", "alibi_slopes"):
        if name in options:
            options[name] = torch.from_numpy(options[name])
    arguments, _ = part_of(case, positions_of)
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
def attention_over_parts_equals_unsharded():
    for number, dtypes in enumerate([(F32, F32), (BFLOAT16, BFLOAT16), (F16, F32), (F32, BFLOAT16)]):
        for q_lens in ([1] * 5, [7, 1, 12, 3, 1]):
            case = Case([50, 1, 12, 33, 64], q_lens, dtypes=dtypes, seed=number)
            for turn, options in enumerate(VIEWS):
                expected = case.reference(**options)
                i = (1, 4)[turn % 2]
                for positions_of, cut in ((contiguous(KINDS[(number + turn) % 4]), {}), (contiguous("uneven"), {}), (interleaved(i), {"interleave": i})):
                    near(case, *attend(case, positions_of, **options, **cut), *expected)


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
        for positions_of, cut in ((contiguous("uneven"), {}), (interleaved(2), {"interleave": 2})):
            if "alibi_slopes" in options and cut:
                continue
            arguments, chosen = part_of(case, positions_of)
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

    said = r"kv_lens\[0\] = 10 on rank 0; of 20 keys with interleave = 3 it holds" if world.ranks == 2 else "with interleave = 3"
    refused(RuntimeError, said, call, interleave=3)
    refused(RuntimeError, "interleave = 0 is not at least 1", call, interleave=0)
    refused(RuntimeError, "alibi_slopes are not possible with interleave", call, interleave=1, alibi_slopes=torch.zeros(4))
    refused(RuntimeError, "window = 0", call, window=0)
    refused(RuntimeError, "window_right = 1 but causal is set", call, window_right=1)
    refused(RuntimeError, "causal has dtype torch.bool and shape", call, causal=torch.tensor([True]))
    refused(RuntimeError, "cu_q_lens = .* does not part 6 queries among 2 sequences", call, cu_q_lens=torch.tensor([0, 4, 5]))
    refused(RuntimeError, "sinks has shape", call, sinks=torch.zeros(3))
    refused(RuntimeError, "mask", call, mask=torch.ones(6, 1, 1, dtype=torch.bool))
    refused(RuntimeError, r"kv_lens\[1\] is .* on all ranks together, less than its 2 queries", sharded.paged_attention, q, *arguments[:2],
            torch.tensor([4, 1 if world.rank == 0 else 0]), arguments[3], cu_q_lens=cu_q_lens)  # fmt: skip
    refused(RuntimeError, "layout", call, layout="HDN")
    refused(RuntimeError, "return_lse must be a bool", call, return_lse=1)
    refused(RuntimeError, "has no derivative", sharded.paged_attention, q.clone().requires_grad_(), *arguments, cu_q_lens=cu_q_lens)
