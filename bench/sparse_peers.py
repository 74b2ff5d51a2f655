#!/usr/bin/env python3
"""Measures PyTorch beside riffle on sparse attention: the indexer, attention to the rows that it has chosen, and a step of both.

  bench/sparse_peers.py [--only indexer-1,step-1] [--json FILE]

DeepSeek-V3.2's sizes: 64 index heads of 128, 2048 rows of 576 chosen, 128 heads. Riffle has int8 index keys, PyTorch bfloat16 ones:
its matrix product, ReLU and weighted sum are the fastest way it has. Attention of PyTorch gathers the rows and multiplies batches.
Each answer is first held against float64 on some of its numbers. See peer_bench.py for how the times are taken.
"""

import numpy as np
from peer_bench import make_parser, markdown, measure, time_call, work, write_json

CASES = {
    "indexer-32": ("scores, 32 queries x 32768 keys", 32, 32768),
    "indexer-1": ("scores, 1 query x 131072 keys", 1, 131072),
    "attention-32": ("attention, 32 queries to 2048 of 131072 rows each, bfloat16", 32, 131072),
    "attention-1": ("attention, 1 query to 2048 of 131072 rows, bfloat16", 1, 131072),
    "step-1": ("scores, the best 2048 and attention to them, 1 query of 131072 tokens", 1, 131072),
}
PEERS = ("riffle", "torch")
HEADS, DIM, CHOSEN, ROW, VALUE, QUERY_HEADS, SCALE = 64, 128, 2048, 576, 512, 128, 0.135


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

    def attend(slots):
        rows = d["rows"][slots.long()]
        p = torch.bmm(d["q"], rows.transpose(1, 2)).float().mul_(SCALE).softmax(-1).bfloat16()
        return torch.bmm(p, rows[..., :VALUE])

    return score, attend, lambda: attend(score().topk(CHOSEN, -1).indices)


def calls_of_riffle(torch, d):
    import riffle

    queries, keys = len(d["q_index"]), len(d["index_keys"])
    pages, scales = torch.zeros(keys // 64, 64, DIM, dtype=torch.int8), torch.zeros(keys // 64, 64)
    riffle.write_index_keys(d["index_keys"], torch.arange(keys), pages, scales, format="int8")
    q = riffle.hadamard(d["q_index"].float())
    batch = np.array([keys]), np.arange(keys // 64)[None]
    named = dict(key_scales=scales, cu_q_lens=np.array([0, queries]))

    def score():
        return riffle.indexer_logits(q, d["weights"], pages, *batch, **named)

    def attend(slots):
        return riffle.sparse_attention(d["q"], d["rows"], slots, value_dim=VALUE, scale=SCALE)

    return score, attend, lambda: attend(riffle.indexer_top_k(q, d["weights"], pages, *batch, CHOSEN, **named, slots=True))


def check(torch, d, scores, out):
    """Raises RuntimeError for an answer that float64 does not give."""
    t = -1  # the last query sees all keys
    q, k = d["q_index"][t].double(), d["index_keys"][:500].double()
    want = d["weights"][t].double() @ (q @ k.T).relu()
    error = (scores[t][:500].double() - want).abs().max() / want.abs().max()
    rows = d["rows"][d["slots"][t].long()].double()
    p = (SCALE * (d["q"][t].double() @ rows.T)).softmax(-1)
    wrong = (out[t].double() - p @ rows[:, :VALUE]).abs().max() / out[t].double().abs().max()
    if not (error < 0.03 and wrong < 0.03):
        raise RuntimeError(f"scores are off by {error:.2g}, attention by {wrong:.2g}")


def worker(peer, case, seconds):
    import torch

    version = torch.__version__
    _, queries, keys = CASES[case]
    d = data(torch, queries, keys)
    if peer == "riffle":
        import riffle

        version = riffle.__version__
    else:
        torch.set_num_threads(2)
    score, attend, step = (calls_of_riffle if peer == "riffle" else calls_of_torch)(torch, d)
    with torch.no_grad():
        check(torch, d, score(), attend(d["slots"]))
        call = dict(indexer=score, attention=lambda: attend(d["slots"]), step=step)[case.split("-")[0]]
        return {"times": time_call(call, seconds), "version": version}


def main():
    arguments = make_parser(__doc__, CASES, PEERS).parse_args()
    if arguments.worker:
        work(worker, arguments)
        return
    results = measure(__file__, arguments)
    print(markdown(results, arguments, "work", lambda case: CASES[case][0]))
    write_json(results, arguments)


if __name__ == "__main__":
    main()
