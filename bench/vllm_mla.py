#!/usr/bin/env python3
"""MLA in vLLM: Riffle's backend (riffle.vllm) beside vLLM's own for hosts without AMX, call by call in one process.

    OMP_NUM_THREADS=2 .venv-vllm/bin/python bench/vllm_mla.py [--only decode,prefill,...] [--seconds 2]

DeepSeek's shapes, 16 heads a rank, bfloat16; vLLM's pages have 16 tokens, the only number that its kernel knows, Riffle's 64.
  decode    one query of each of 8 sequences of 8192 tokens (decode1: of 1 sequence; decode128: of 128 tokens)
  write     latents and keys of 8 tokens (write2048: of 2048) into the cache
  prefill   a prompt of 2048 tokens: vLLM makes keys and values of all of it
  chunk     512 new tokens behind 8192, which vLLM's backend cannot: absorbed, and with keys and values made from the cache
  chunk128  the same with 128 new tokens; ABSORBED_TOKENS of riffle/vllm/_mla_backend.py lies where the two cross
Answers are compared with float64 before anything is timed. Bytes are those of the rows that decode must read.
"""

import argparse
import statistics
import time
from types import SimpleNamespace

import torch

LATENT, ROTATED, HEADS, NOPE, VALUE = 512, 64, 16, 128, 128
SCALE = (NOPE + ROTATED) ** -0.5
DTYPE = torch.bfloat16


def backends():
    """Both implementations with the same projection, without an engine around them."""
    from riffle.vllm._mla_backend import RiffleMLAImpl
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.mla.cpu_mla import CPUMLAImpl

    current_platform.import_kernels()
    weight = (torch.randn(HEADS * (NOPE + VALUE), LATENT) * LATENT**-0.5).to(DTYPE)
    made = []
    for kind in (CPUMLAImpl, RiffleMLAImpl):
        impl = kind.__new__(kind)
        impl.__dict__.update(
            num_heads=HEADS, scale=SCALE, kv_lora_rank=LATENT, qk_rope_head_dim=ROTATED, qk_nope_head_dim=NOPE, v_head_dim=VALUE,
            qk_head_dim=NOPE + ROTATED, kv_b_proj=lambda x: (torch.nn.functional.linear(x, weight),), float8=None,
            dcp_world_size=1, _use_flashinfer_concat_mla_k=False,
        )  # fmt: skip
        made.append(impl)
    return *made, weight.view(HEADS, NOPE + VALUE, LATENT)


def caches(lengths):
    """The same rows in pages of 16 and of 64, in a random order: [(cache, table)], the rows and the lengths."""
    rows = torch.randn(sum(lengths), LATENT + ROTATED).to(DTYPE)
    result = []
    for block in (16, 64):
        counts = [-(-length // block) for length in lengths]
        pages = torch.randperm(sum(counts)).to(torch.int32)
        table = torch.zeros(len(lengths), max(counts), dtype=torch.int32)
        cache = torch.zeros(sum(counts), block, LATENT + ROTATED, dtype=DTYPE)
        first = used = 0
        for i, (length, count) in enumerate(zip(lengths, counts)):
            table[i, :count] = pages[used : used + count]
            at = torch.arange(length)
            cache[table[i, at // block].long(), at % block] = rows[first : first + length]
            first, used = first + length, used + count
        result.append((cache, table))
    return result, rows, torch.tensor(lengths, dtype=torch.int32)


def decode(sequences, length):
    vllm, ours, _ = backends()
    (theirs16, ours64), rows, lens = caches([length] * sequences)
    q = torch.randn(sequences, HEADS, LATENT + ROTATED).to(DTYPE)
    parts = (q[..., :LATENT].contiguous(), q[..., LATENT:].contiguous())
    layer = SimpleNamespace(_k_scale=torch.ones(()))

    def call(impl, cache, table):
        metadata = SimpleNamespace(
            causal=True, decode=SimpleNamespace(block_table=table, seq_lens=lens, query_start_loc=None)
        )
        return lambda: impl.forward_mqa(parts, cache, metadata, layer)[0]

    keys = rows.view(sequences, length, -1).double()
    want = torch.softmax(q.double() @ keys.mT * SCALE, -1) @ keys[..., :LATENT]
    return {"vLLM": call(vllm, *theirs16), "Riffle": call(ours, *ours64)}, want, rows.nbytes


def write(tokens):
    vllm, ours, _ = backends()
    (theirs16, ours64), rows, _ = caches([4096])
    slots = torch.randperm(4096)[:tokens]
    latent, rotated = rows[:tokens, :LATENT].contiguous(), rows[:tokens, None, LATENT:].contiguous()

    def call(impl, cache):
        def run():
            impl.do_kv_cache_update(latent, rotated, cache, slots, "auto", torch.ones(()))
            return cache.view(-1, LATENT + ROTATED)[slots]

        return run

    return {"vLLM": call(vllm, theirs16[0]), "Riffle": call(ours, ours64[0])}, rows[:tokens].double(), None


def prefill(tokens, context):
    """A request's new tokens behind `context` others; absorbed calls include the two projections that absorbing needs."""
    from vllm.v1.attention.backends.mla.prefill.cpu_sdpa import CPUSDPAMLAPrefillBackend

    vllm, ours, weight = backends()
    length = context + tokens
    (_, (cache, table)), rows, lens = caches([length])
    q = torch.randn(tokens, HEADS, NOPE + ROTATED).to(DTYPE)
    starts = torch.tensor([0, tokens], dtype=torch.int32)
    key_weight, value_weight = weight[:, :NOPE].contiguous(), weight[:, NOPE:].mT.contiguous()

    def made():
        output = torch.empty(tokens, HEADS * VALUE, dtype=DTYPE)
        part = SimpleNamespace(seq_lens=[length], starts=[0, tokens], block_table=table)
        ours.forward_mha(q, None, None, cache, SimpleNamespace(prefill=part), torch.ones(()), output)
        return output.view(tokens, HEADS, VALUE)

    def absorbed():
        latent = torch.bmm(q[..., :NOPE].transpose(0, 1), key_weight).transpose(0, 1)
        part = SimpleNamespace(block_table=table, seq_lens=lens, query_start_loc=starts)
        metadata = SimpleNamespace(causal=True, decode=part)
        out, _ = ours.forward_mqa((latent, q[..., NOPE:]), cache, metadata, SimpleNamespace(_k_scale=torch.ones(())))
        return torch.bmm(out.transpose(0, 1), value_weight).transpose(0, 1)

    def theirs():
        backend = CPUSDPAMLAPrefillBackend(HEADS, SCALE, LATENT, NOPE, ROTATED, VALUE, None)
        part = SimpleNamespace(prefill_backend=backend, q_data_type=DTYPE, chunked_context=None, query_start_loc=starts)
        backend.prepare_metadata(part)
        output = torch.empty(tokens, HEADS * VALUE, dtype=DTYPE)
        metadata = SimpleNamespace(prefill=part)
        vllm.forward_mha(q, rows[:, :LATENT], rows[:, None, LATENT:], cache, metadata, torch.ones(()), output)
        return output.view(tokens, HEADS, VALUE)

    calls = {"Riffle, made": made, "Riffle, absorbed": absorbed}
    if context == 0:
        calls = {"vLLM": theirs, **calls}
    return calls, reference(q, rows, weight, context), None


def reference(q, rows, weight, context):
    """Float64, a head at a time."""
    hidden = torch.arange(rows.shape[0]) > torch.arange(q.shape[0])[:, None] + context
    out = torch.empty(q.shape[0], HEADS, VALUE, dtype=torch.float64)
    latent, rotated = rows.double().split([LATENT, ROTATED], -1)
    for head in range(HEADS):
        made = latent @ weight[head].double().T
        keys = torch.cat([made[:, :NOPE], rotated], -1)
        scores = (q[:, head].double() @ keys.T * SCALE).masked_fill(hidden, -torch.inf)
        out[:, head] = torch.softmax(scores, -1) @ made[:, NOPE:]
    return out


CASES = {
    "decode": (decode, 8, 8192),
    "decode1": (decode, 1, 8192),
    "decode128": (decode, 8, 128),
    "write": (write, 8),
    "write2048": (write, 2048),
    "prefill": (prefill, 2048, 0),
    "chunk": (prefill, 512, 8192),
    "chunk128": (prefill, 128, 8192),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(CASES))
    parser.add_argument("--seconds", type=float, default=2.0, help="of each case")
    arguments = parser.parse_args()
    import riffle.torch

    torch.manual_seed(0)
    riffle.torch.use_torch_threads()
    print(f"{torch.get_num_threads()} threads, {riffle.info()['target']}; medians of calls in turn; error: largest beside float64")
    for name in arguments.only.split(","):
        function, *sizes = CASES[name]
        calls, want, size = function(*sizes)
        errors = {side: float((call().double() - want).abs().max() / want.abs().max()) for side, call in calls.items()}
        assert max(errors.values()) < 0.03, errors
        times = {side: [] for side in calls}
        end = time.perf_counter() + arguments.seconds
        while time.perf_counter() < end or len(times[next(iter(calls))]) < 3:
            for side, call in calls.items():
                begin = time.perf_counter()
                call()
                times[side].append(time.perf_counter() - begin)
        medians = {side: statistics.median(values) for side, values in times.items()}
        slowest = next(iter(calls))
        for side, median in medians.items():
            rate = f", {size / median / 1e9:.1f} GB/s" if size else ""
            ratio = "" if side == slowest else f", {medians[slowest] / median:.2f} times {slowest}"
            print(f"{name:10} {side:17} {median * 1e3:9.3f} ms{rate}{ratio}; error {errors[side]:.1e}")


if __name__ == "__main__":
    main()
