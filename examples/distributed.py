"""A vocabulary and a context in shards on two processes: the tokens of one process, the attention of one process."""

import pathlib
import tempfile

try:
    import torch
    import torch.distributed as dist
except ImportError:
    torch = None
else:
    import riffle.torch.distributed

RANKS, VOCABULARY, TOKENS, HEADS, HEAD_DIM, PAGE = 2, 50_000, 1000, 8, 64, 16


def run(rank, meeting):
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=RANKS)
    torch.manual_seed(0)  # every rank makes the whole, to compare with; it works on its shard

    # The LM head: each rank has half of the vocabulary's rows. One all-gather of 5 candidates a row.
    x, weight = torch.randn(4, 128), torch.randn(VOCABULARY, 128)
    shard = weight.chunk(RANKS)[rank]
    best = riffle.torch.distributed.linear_top_k(x, shard, 5)
    assert torch.equal(best.indices, riffle.torch.linear_top_k(x, weight, 5).indices)

    logits = x @ weight.T
    tokens = riffle.torch.distributed.sample(logits.chunk(RANKS, dim=1)[rank], top_k=50, top_p=0.9, seed=1)
    assert torch.equal(tokens, riffle.torch.sample(logits, top_k=50, top_p=0.9, seed=1))

    # Decode: each rank has the pages of half of the context. One all-gather of a state a query.
    q, keys, values = torch.randn(1, HEADS, HEAD_DIM), *torch.randn(2, -(-TOKENS // PAGE), PAGE, HEADS, HEAD_DIM)
    pages = torch.arange(len(keys), dtype=torch.int32).chunk(RANKS)[rank]
    kv_len = torch.tensor([min(TOKENS - int(pages[0]) * PAGE, len(pages) * PAGE)])
    out = riffle.torch.distributed.paged_attention(q, keys, values, kv_len, pages[None], layout="NHD")
    whole = torch.arange(len(keys), dtype=torch.int32)[None]
    expected = riffle.torch.paged_attention(q, keys, values, torch.tensor([TOKENS]), whole, layout="NHD")
    assert torch.allclose(out, expected, atol=1e-5)
    if rank == 0:
        print(f"tokens {tokens.tolist()}; attention at most {(out - expected).abs().max():.1e} off")
    dist.destroy_process_group()


def main():
    if torch is None or not dist.is_gloo_available():
        print("needs PyTorch with gloo")
        return
    with tempfile.TemporaryDirectory() as folder:  # in a cluster, torchrun tells the ranks where to meet
        torch.multiprocessing.spawn(run, (f"file://{pathlib.Path(folder) / 'meeting'}",), RANKS)


if __name__ == "__main__":
    main()
