"""A wrong type in any argument of any public function: an error of Riffle's own, which names the argument and what was given.

Every argument of every call below is given every value of WRONG. A call may take it, where it is legal; else the error is of
the kind that the function documents, and its text is not that of the extension or of a framework.
"""

import functools
import inspect
import re

import numpy as np
import pytest
import riffle


class Odd:
    def __repr__(self):
        return "<an odd thing>"


class Unprintable:
    def __repr__(self):
        raise RuntimeError("no text")


WRONG = {
    "None": None, "str": "x", "bytes": b"x", "float": 1.5, "nan": float("nan"), "complex": 1j, "object": Odd(), "list": [], "dict": {"a": 1},
    "nested list": [["a"]], "tuple": (1, "b"), "type": int, "function": len, "bool": True, "huge": 2**70, "ellipsis": ..., "set": {1},
    "generator": None, "array of objects": np.array([None, "a"]), "array of str": np.array(["a", "b"]), "unprintable": Unprintable(),
}  # fmt: skip

F32, I32 = np.float32, np.int32
X = np.arange(12, dtype=F32).reshape(3, 4)


def core_calls():
    pages = np.ones((2, 1, 16, 32), F32)
    attention = dict(q=np.ones((2, 2, 32), F32), keys=pages, values=pages, kv_lens=np.array([3, 4], I32),
                     page_table=np.array([[0], [1]], I32), cu_q_lens=np.array([0, 1, 2], I32), sinks=np.zeros(2, F32),
                     scale=0.1, window=3, window_right=0, soft_cap=2.0, mask_value=-1e31, layout="HND", causal=True,
                     mask=np.zeros((1, 1, 4), F32), alibi_slopes=np.ones(2, F32), return_lse=False, out=None)  # fmt: skip
    int8 = np.ones((2, 1, 16, 32), np.int8)
    yield "top_k", riffle.top_k, dict(x=X, k=2, sorted=True, largest=True, algorithm="auto", lanes=128, depth_schedule=None,
                                      out=None, return_stats=False, ids=None)  # fmt: skip
    rows = dict(sorted=True, out=None, index_order_if_short=False)
    yield "top_k_per_row", riffle.top_k_per_row, dict(x=X, starts=np.zeros(3, I32), ends=np.ones(3, I32), k=2, **rows)
    rows = dict(next_n=1, out=None, index_order_if_short=False)
    yield "top_k_per_row_decode", riffle.top_k_per_row_decode, dict(x=X, seq_lens=np.ones(3, I32), k=2, **rows)
    yield "plan_top_k", riffle.plan_top_k, dict(n=100, k=3, rows=1, lanes=128, depth_schedule=[2, 3])
    yield "depth_probabilities", riffle.depth_probabilities, dict(k=3, lanes=128)
    yield "linear", riffle.linear, dict(x=X, weight=X, bias=np.ones(3, F32), weight_format=None, out=None)
    yield "linear_top_k", riffle.linear_top_k, dict(x=X, weight=X, k=2, bias=None, weight_format=None)
    yield "sample", riffle.sample, dict(logits=X, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=0, stream=None, position=None,
                                        return_logprobs=False, on_invalid="token", top_logprobs=1, allowed=np.full((3, 1), -1, I32),
                                        logit_bias=None, repetition_penalty=1.1, presence_penalty=0.1, frequency_penalty=0.1,
                                        prompt_tokens=None, output_tokens=None)  # fmt: skip
    yield "verify_drafts", riffle.verify_drafts, dict(
        logits=X, draft_tokens=np.array([1, 2], I32), offsets=np.array([0, 2], I32), draft_probs=None, temperature=1.0, top_k=0, top_p=1.0,
        min_p=0.0, seed=0, stream=None, position=None, on_invalid="token")  # fmt: skip
    yield "apply_top_k_top_p_", riffle.apply_top_k_top_p_, dict(logits=X.copy(), top_k=2, top_p=0.5, min_p=None)
    yield "paged_attention", riffle.paged_attention, dict(attention, key_scales=None, value_scales=None,
                                                                 key_format=None, value_format=None)  # fmt: skip
    yield "paged_attention-int8", riffle.paged_attention, dict(attention, keys=int8, values=int8, key_scales=0.5, value_scales=0.5,
                                                                      key_format=None, value_format=None)  # fmt: skip
    yield "merge_states", riffle.merge_states, dict(outs=[np.ones((2, 1, 32), F32)], lses=[np.ones((2, 1), F32)])
    yield "set_num_threads", riffle.set_num_threads, dict(n=riffle.info()["threads"])
    yield "set_target", riffle.set_target, dict(name=None)
    yield "KvCache", riffle.KvCache, dict(layers=1, kv_heads=1, head_dim=32, pages=4, page_size=16, dtype="float32")
    cache = riffle.KvCache(layers=1, kv_heads=1, head_dim=32, pages=8, dtype="float32")
    seq = cache.create()
    cache.extend(seq, 2)
    tokens = np.ones((2, 1, 32), F32)
    yield "KvCache.fork", cache.fork, dict(seq=seq)
    yield "KvCache.extend", cache.extend, dict(seq=seq, tokens=0)
    yield "KvCache.write", cache.write, dict(layer=0, seq=seq, position=0, keys=tokens, values=tokens)
    yield "KvCache.truncate", cache.truncate, dict(seq=seq, length=2)
    yield "KvCache.length", cache.length, dict(seq=seq)
    yield "KvCache.batch", cache.batch, dict(seqs=[seq])
    yield "KvCache.keys", cache.keys, dict(layer=0)
    yield "KvCache.values", cache.values, dict(layer=0)
    yield "KvCache.key_scales", cache.key_scales, dict(layer=0)
    yield "KvCache.value_scales", cache.value_scales, dict(layer=0)
    yield "KvCache.create", cache.create, dict(block_keys=[b"16 bytes of a key"[:16]])
    yield "KvCache.lookup", cache.lookup, dict(block_keys=[5])
    other = cache.create()
    cache.extend(other, 32)
    yield "KvCache.set_block_keys", cache.set_block_keys, dict(seq=other, block_keys=[7])
    yield "KvCache.swap_bytes", cache.swap_bytes, dict(seq=other)
    memory = np.zeros(cache.swap_bytes(other), np.uint8)

    @functools.wraps(cache.swap_out)
    def swap_out_and_in(seq, memory=None):
        cache.swap_in(seq, cache.swap_out(seq, memory))

    @functools.wraps(cache.swap_in)
    def swap_in(**given):
        held = cache.swap_out(other)
        try:
            cache.swap_in(**given)
        except Exception:
            cache.swap_in(other, held)
            raise

    cache.swap_in(other, cache.swap_out(other, memory))
    yield "KvCache.swap_out", swap_out_and_in, dict(seq=other, memory=memory)
    yield "KvCache.swap_in", swap_in, dict(seq=other, memory=memory.copy())
    yield "KvCache.free", cache.free, dict(seq=cache.create())


def write_calls(convert=lambda array: array):
    tokens, pages = np.ones((2, 1, 32), F32), np.zeros((2, 1, 4, 32), F32)
    int8 = pages.astype(np.int8)
    write = dict(keys=convert(tokens), values=convert(tokens), slots=convert(np.array([3, 4], I32)), layout="HND", key_format=None,
                 value_format=None, compute_scales=False)  # fmt: skip
    yield dict(write, key_pages=convert(pages.copy()), value_pages=convert(pages.copy()), key_scales=None, value_scales=None)
    yield dict(write, key_pages=convert(int8.copy()), value_pages=convert(int8.copy()), key_scales=0.5, value_scales=2.0)


def sparse_calls():
    q, keys = np.ones((2, 2, 32), F32), np.ones((2, 4, 32), F32)
    batch = dict(kv_lens=np.array([3, 4], I32), page_table=np.array([[0], [1]], I32), cu_q_lens=np.array([0, 1, 2], I32))
    indexer = dict(batch, q=q, weights=np.ones((2, 2), F32), keys=keys, key_scales=None, key_format=None, ratio=1, activation="relu", out=None)
    yield "indexer_logits", riffle.indexer_logits, indexer
    yield "indexer_top_k", riffle.indexer_top_k, dict(
        indexer, k=2, block=1, reduce="max", first_blocks=0, local_blocks=0, incomplete_tail=False, candidates=None, candidate_span=1,
        slots=False)  # fmt: skip
    yield "write_index_keys", riffle.write_index_keys, dict(
        keys=np.ones((2, 32), F32), slots=np.array([1, 2], I32), pages=np.zeros((2, 4, 32), F32), scales=None, format="plain", hadamard=True)
    yield "hadamard", riffle.hadamard, dict(x=X)
    yield "positions_to_slots", riffle.positions_to_slots, dict(
        positions=np.array([[0, 1], [1, -1]], I32), page_table=batch["page_table"], page_size=4, cu_q_lens=batch["cu_q_lens"])
    yield "sparse_attention", riffle.sparse_attention, dict(
        q=q, rows=np.ones((8, 32), F32), slots=np.array([[0, 1], [2, -1]], I32), lengths=np.array([2, 1], I32), row_format="plain", row_scales=None,
        value_dim=32, extra=(), scale=0.1, sinks=np.zeros(2, F32), invalid="raise", out=None, return_lse=False)  # fmt: skip
    yield "write_sparse_rows", riffle.write_sparse_rows, dict(
        x=np.ones((2, 576), F32), slots=np.array([1, 2], I32), rows=np.zeros((4, 656), np.uint8), row_format="mla656", power_of_two_scales=True)
    yield "expand_blocks", riffle.expand_blocks, dict(blocks=np.ones((1, 3), I32), block=4, ends=np.array([9]))
    yield "compress_kv", riffle.compress_kv, dict(
        kv=np.ones((9, 32), F32), gates=np.ones((9, 32), F32), ratio=4, overlap=False, gate_bias=None, norm=True, norm_weight=None,
        norm_eps=1e-6, cos_sin=np.ones((9, 16), F32), cu_lens=np.array([0, 9]), first_entries=np.array([0]), out=None)  # fmt: skip
    for given in write_calls():
        yield "write_kv", riffle.write_kv, given


def jax_calls():
    pytest.importorskip("jax", reason="JAX is not installed")
    import riffle.jax

    pages = np.ones((1, 2, 16, 32), F32)
    yield "top_k", riffle.jax.top_k, dict(operand=X, k=2, axis=-1, is_stable=True)
    yield "top_k_per_row", riffle.jax.top_k_per_row, dict(x=X, starts=np.zeros(3, I32), ends=np.ones(3, I32), k=2)
    yield "paged_attention", riffle.jax.paged_attention, dict(
        q=np.ones((2, 2, 32), F32), k_pages=pages, v_pages=pages, lengths=np.array([3, 4], I32), page_indices=np.array([[0], [1]], I32),
        sm_scale=1.0, mask_value=-1e31, attn_logits_soft_cap=None, pages_per_compute_block=None, megacore_mode=None, inline_seq_dim=True,
        window=None, key_scales=None, value_scales=None)  # fmt: skip
    yield "prefill_attention", riffle.jax.prefill_attention, dict(
        q=np.ones((2, 2, 32), F32), k_pages=pages, v_pages=pages, length=2, page_indices=np.array([0], I32), sm_scale=None, causal=True,
        window=None, window_right=None, key_scales=None, value_scales=None)  # fmt: skip
    import jax

    def on_an_axis(function):
        """The function where there is a mesh axis "d", of one device."""

        @functools.wraps(function)
        def call(**given):
            return jax.vmap(lambda _: function(**given), axis_name="d")(np.zeros(1))

        return call

    yield "sharded_top_k", on_an_axis(riffle.jax.sharded_top_k), dict(operand=X, k=2, axis_name="d", axis=-1, size=None)
    yield "sharded_paged_attention", on_an_axis(riffle.jax.sharded_paged_attention), dict(
        q=np.ones((2, 2, 32), F32), k_pages=pages, v_pages=pages, lengths=np.array([3, 4], I32), page_indices=np.array([[0], [1]], I32),
        axis_name="d", sm_scale=1.0, mask_value=-1e31, attn_logits_soft_cap=None, key_scales=None, value_scales=None, return_lse=True)  # fmt: skip
    for given in write_calls():
        yield "write_kv", riffle.jax.write_kv, given
    calls = {call: given for call, _, given in sparse_calls()}
    for name in ("indexer_top_k", "sparse_attention"):
        yield name, getattr(riffle.jax, name), {argument: x for argument, x in calls[name].items() if argument != "out"}


def torch_calls():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    import riffle.torch

    x = torch.from_numpy(X.copy())
    zeros, ones = torch.zeros(3, dtype=torch.int32), torch.ones(3, dtype=torch.int32)
    pages = torch.ones(2, 1, 16, 32)
    per_row = dict(indices=torch.zeros(3, 2, dtype=torch.int32), num_rows=3, stride0=4, stride1=1, top_k=2)
    yield "topk", riffle.torch.topk, dict(input=x, k=2, dim=-1, largest=True, sorted=True, out=None)
    yield "top_k_per_row_prefill", riffle.torch.top_k_per_row_prefill, dict(logits=x, row_starts=zeros, row_ends=ones, **per_row)
    yield "top_k_per_row_decode", riffle.torch.top_k_per_row_decode, dict(logits=x, next_n=1, seq_lens=ones, **per_row)
    yield "linear_top_k", riffle.torch.linear_top_k, dict(x=x, weight=x, k=2, bias=None)
    yield "sample", riffle.torch.sample, dict(logits=x, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=0, stream=None, position=None,
                                              return_logprobs=False, on_invalid="token")  # fmt: skip
    yield "apply_top_k_top_p_", riffle.torch.apply_top_k_top_p_, dict(logits=x.clone(), top_k=2, top_p=0.5, min_p=None)
    yield "paged_attention", riffle.torch.paged_attention, dict(
        q=torch.ones(2, 2, 32), keys=pages, values=pages, kv_lens=ones[:2], page_table=torch.tensor([[0], [1]], dtype=torch.int32),
        cu_q_lens=None, layout="HND", scale=None, causal=True, window=None, window_right=None, soft_cap=None, sinks=None, mask_value=None,
        mask=None, alibi_slopes=None, key_scales=None, value_scales=None, key_format=None, value_format=None, out=None, return_lse=False)  # fmt: skip
    dense = torch.ones(1, 2, 3, 32)
    yield "scaled_dot_product_attention", riffle.torch.scaled_dot_product_attention, dict(
        query=dense, key=dense, value=dense, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False)  # fmt: skip
    for given in write_calls(torch.from_numpy):
        yield "write_kv", riffle.torch.write_kv, given


def torch_sparse_calls():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    import riffle.torch

    e4m3 = torch.float8_e4m3fn
    ints = torch.tensor([2, 4], dtype=torch.int32)
    q, weights = torch.ones(2, 2, 32).to(e4m3), torch.ones(2, 2)
    yield "fp8_mqa_logits", riffle.torch.fp8_mqa_logits, dict(
        q=q, kv=(torch.ones(4, 32).to(e4m3), torch.ones(4)), weights=weights, cu_seq_len_k_start=torch.zeros(2, dtype=torch.int32),
        cu_seq_len_k_end=ints, clean_logits=True, max_seqlen_k=0)  # fmt: skip
    yield "fp8_paged_mqa_logits", riffle.torch.fp8_paged_mqa_logits, dict(
        q=q[:, None], fused_kv_cache=torch.zeros(2, 4, 1, 36, dtype=torch.uint8), weights=weights, context_lens=ints,
        block_table=torch.tensor([[0], [1]], dtype=torch.int32), schedule_meta=None, max_context_len=4, clean_logits=True)  # fmt: skip
    rows = torch.ones(8, 1, 32)
    yield "flash_mla_sparse_fwd", riffle.torch.flash_mla_sparse_fwd, dict(
        q=torch.ones(2, 2, 32), kv=rows, indices=torch.zeros(2, 1, 3, dtype=torch.int32), sm_scale=0.1, d_v=16, attn_sink=torch.zeros(2),
        topk_length=ints - 1)  # fmt: skip
    yield "flash_mla_with_kvcache", riffle.torch.flash_mla_with_kvcache, dict(
        q=torch.ones(2, 1, 2, 32), k_cache=rows.reshape(2, 4, 1, 32), block_table=None, cache_seqlens=None, head_dim_v=16,
        tile_scheduler_metadata=None, num_splits=None, softmax_scale=0.1, causal=False, is_fp8_kvcache=False,
        indices=torch.zeros(2, 1, 3, dtype=torch.int32), attn_sink=torch.zeros(2), extra_k_cache=None, extra_indices_in_kvcache=None,
        topk_length=ints - 1, extra_topk_length=None)  # fmt: skip


MODULES = {
    "riffle": lambda: (*core_calls(), *sparse_calls()), "riffle.jax": jax_calls,
    "riffle.torch": lambda: (*torch_calls(), *torch_sparse_calls()),
}  # fmt: skip
# What a value of a wrong type has become where a text shows it: ints saturate at int64, bytes are an array of one uint8.
SEEN_AS = {
    "bool": ["= 1", "shape ()"], "float": ["shape ()"], "nan": ["shape ()"], "generator": ["0 parts", "'b'", "'a'", "not str"],
    "set": ["is another one"], "list": ["0 parts", "1 and 0", "1 parts and lses 0", "0 elements"], "nested list": ["1 elements"],
    "huge": [str(2**63 - 1), str(2**31 - 1), "1.18059e+21", "1.1805916207174113e+21"],
    "bytes": ["uint8", "(1,)", "1..1", "= 120", "in place", "not int"], "array of str": ["in place"], "array of objects": ["in place"],
}  # fmt: skip
# Texts that are PyTorch's own, as riffle.torch promises for torch.topk's arguments.
TORCHS = {("topk", "k", "huge"), ("topk", "dim", "huge")}
# What else a text is never made of: of nanobind, of the operators' schemas, of JAX's tracing.
FOREIGN = re.compile(
    "incompatible function arguments|nanobind|_core|Invoked with|std::|riffle::|Expected a value of type|schema|JAX type|abstract array"
    "|has no attribute|object is not iterable|unhashable|Non-hashable"
)


def fault(function, given, name, kind, kinds):
    """Empty, or what is wrong with the answer to a value of a wrong type."""
    wrong = (i for i in "ab") if kind == "generator" else WRONG[kind]
    try:
        function(**given | {name: wrong})
    except kinds as error:
        text = str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    else:
        return ""
    if FOREIGN.search(text):
        return f"a text that is not ours: {text}"
    if not re.search(rf"\b{'seqs?' if name == 'seqs' else name}\b", text):
        return f"the argument is not named: {text}"
    shown = [type(wrong).__name__, f"with {name} it must be int8", *SEEN_AS.get(kind, [])]
    if not isinstance(wrong, Unprintable):
        shown += [repr(wrong), str(getattr(wrong, "dtype", repr(wrong)))]
    if isinstance(wrong, (list, tuple, set, dict, np.ndarray)):  # one of its elements
        shown += [text for x in wrong for text in (repr(x), f"not {type(x).__name__}", f"are {type(x).__name__}")]
    if not any(word in text for word in shown):
        return f"what was given is not named: {text}"
    return ""


@pytest.mark.parametrize("module", MODULES)
def test_wrong_types(module):
    kinds = {"riffle": (ValueError, TypeError, MemoryError, riffle.OutOfPages), "riffle.jax": (ValueError, TypeError),
             "riffle.torch": (RuntimeError, TypeError)}[module]  # fmt: skip
    faults, calls = [], 0
    for call, function, given in MODULES[module]():
        function(**given)  # is right
        if call == "KvCache.free":
            given = dict(seq=0)  # the sequence is gone
        for name in given:
            for kind in WRONG:
                if (call, name, kind) in TORCHS:
                    continue
                what = fault(function, given, name, kind, kinds)
                faults += [f"{call}({name}=<{kind}>): {what}"] if what else []
                calls += 1
    assert not faults, f"{len(faults)} of {calls}:\n" + "\n".join(faults)
    assert calls > 300


@pytest.mark.parametrize("module", MODULES)
def test_every_function_and_argument_is_tried(module):
    calls = list(MODULES[module]())
    tried = {}
    for _, function, given in calls:
        tried.setdefault(function.__qualname__, set()).update(given)
        optional = inspect.signature(function).parameters
        assert set(given) <= set(optional) and (set(given) == set(optional) or function.__qualname__ == "KvCache")
    namespace = __import__(module, fromlist=["x"])
    public = getattr(namespace, "__all__", None) or [n for n, x in vars(namespace).items() if getattr(x, "__module__", "") == module]
    functions = {n for n in public if inspect.isfunction(getattr(namespace, n)) and inspect.signature(getattr(namespace, n)).parameters}
    assert functions <= set(tried) | {"use_torch_threads"}
    if module == "riffle":
        methods = {f"KvCache.{n}" for n, x in vars(riffle.KvCache).items() if inspect.isfunction(x) and len(inspect.signature(x).parameters) > 1}
        assert methods - {"KvCache.__init__"} <= set(tried)
