"""A wrong type in any argument of the functions of sparse attention, as test_wrong_types.py has it for the others."""

import numpy as np
import pytest
import riffle
from test_wrong_types import WRONG, fault

F32, I32 = np.float32, np.int32


def core_calls():
    index = dict(q=np.ones((2, 3, 32), F32), weights=np.ones((2, 3), F32), keys=np.ones((4, 8, 32), F32), kv_lens=np.array([9, 5], I32),
                 page_table=np.array([[0, 1], [2, 3]], I32), cu_q_lens=np.array([0, 1, 2], I32), key_scales=np.ones((4, 8), F32), key_format=None,
                 ratio=1, activation="relu", out=None)  # fmt: skip
    yield "indexer_logits", riffle.indexer_logits, index
    yield "indexer_top_k", riffle.indexer_top_k, dict(index, k=3, block=1, reduce="max", first_blocks=0, local_blocks=0, incomplete_tail=False,
                                                      candidates=None, candidate_span=1, slots=False)  # fmt: skip
    yield "write_index_keys", riffle.write_index_keys, dict(keys=np.ones((2, 32), F32), slots=np.array([0, 5]), pages=np.zeros((4, 8, 32), np.int8),
                                                            scales=np.zeros((4, 8), F32), format="int8", hadamard=True)  # fmt: skip
    yield "hadamard", riffle.hadamard, dict(x=np.ones((2, 32), F32))
    yield "positions_to_slots", riffle.positions_to_slots, dict(positions=np.ones((1, 3), I32), page_table=np.array([[2, 1]]), page_size=16, cu_q_lens=None)
    yield "expand_blocks", riffle.expand_blocks, dict(blocks=np.ones((1, 3), I32), block=4, ends=np.array([9]))
    yield "compress_kv", riffle.compress_kv, dict(
        kv=np.ones((9, 32), F32), gates=np.ones((9, 32), F32), ratio=4, overlap=False, gate_bias=None, norm=True,
        norm_weight=None, norm_eps=1e-6, cos_sin=np.ones((9, 16), F32), cu_lens=np.array([0, 9]), first_entries=np.array([0]), out=None)
    yield "sparse_attention", riffle.sparse_attention, dict(
        q=np.ones((2, 3, 32), F32), rows=np.ones((9, 32), F32), slots=np.ones((2, 4), I32), lengths=np.array([1, 4], I32), row_format="plain",
        value_dim=None, extra=(), scale=1.0, sinks=np.zeros(3, F32), invalid="raise", out=None, return_lse=False)  # fmt: skip


def jax_calls():
    pytest.importorskip("jax", reason="JAX is not installed")
    import riffle.jax

    calls = {call: given for call, _, given in core_calls()}
    for name in ("indexer_top_k", "sparse_attention"):
        yield name, getattr(riffle.jax, name), {argument: x for argument, x in calls[name].items() if argument != "out"}


@pytest.mark.parametrize("calls", [core_calls, jax_calls])
def test_wrong_types(calls):
    faults, count = [], 0
    for call, function, given in calls():
        function(**given)  # is right
        for name in given:
            for kind in WRONG:
                what = fault(function, given, name, kind, (ValueError, TypeError, MemoryError))
                faults += [f"{call}({name}=<{kind}>): {what}"] if what else []
                count += 1
    assert not faults, f"{len(faults)} of {count}:\n" + "\n".join(faults)
    assert count > 300
