"""Exact top-k and paged attention on CPUs, for NumPy, PyTorch and JAX arrays.

Arrays are read in place, without copies. Accepted are NumPy, PyTorch (CPU) and JAX (CPU) arrays and whatever else exports
DLPack or a buffer from the CPU. Each function names the dtypes that it takes; bfloat16 and float8 of NumPy are those of
ml_dtypes. Results are of the first array argument's framework, or NumPy's where that is none of the three. Tensors that
require grad are read as if detached: nothing here has a gradient. The GIL is released while a kernel runs.

Order, everywhere: descending by value; NaN of either sign above +inf, all NaNs equal; -0 equals +0; of equal values the
lower index first. Results are bitwise the same for any number of threads and any batch; top-k's on any SIMD target too.

A bad argument raises ValueError, a wrong dtype TypeError; the text names the argument, its value and the limit, and
nothing has been written then.

`riffle.torch`, `riffle.jax` and `riffle.transformers` are imported when they are first used, or by their name; each needs its
framework, and says so where it is not installed.

Environment: RIFFLE_NUM_THREADS sets the number of threads, RIFFLE_TARGET the SIMD target.
"""

import importlib as _importlib
from typing import Any as _Any

from riffle._attention import merge_states, paged_attention
from riffle._core import OutOfPages, __version__
from riffle._kv_cache import KvCache
from riffle._linear import linear, linear_top_k
from riffle._runtime import info, release_scratch, set_num_threads, set_target
from riffle._sampling import apply_top_k_top_p_, sample, verify_drafts
from riffle._sparse import (
    compress_kv,
    expand_blocks,
    hadamard,
    indexer_logits,
    indexer_top_k,
    positions_to_slots,
    sparse_attention,
    write_index_keys,
    write_sparse_rows,
)
from riffle._topk import (
    TopK,
    TopKStats,
    depth_probabilities,
    plan_top_k,
    top_k,
    top_k_per_row,
    top_k_per_row_decode,
)
from riffle._write_kv import write_kv

__all__ = [
    "KvCache",
    "OutOfPages",
    "TopK",
    "TopKStats",
    "__version__",
    "apply_top_k_top_p_",
    "compress_kv",
    "depth_probabilities",
    "expand_blocks",
    "hadamard",
    "indexer_logits",
    "indexer_top_k",
    "info",
    "linear",
    "linear_top_k",
    "merge_states",
    "paged_attention",
    "plan_top_k",
    "positions_to_slots",
    "release_scratch",
    "sample",
    "set_num_threads",
    "set_target",
    "sparse_attention",
    "top_k",
    "top_k_per_row",
    "top_k_per_row_decode",
    "verify_drafts",
    "write_index_keys",
    "write_kv",
    "write_sparse_rows",
]

for _public in (KvCache, apply_top_k_top_p_, compress_kv, expand_blocks, hadamard, indexer_logits, indexer_top_k,
                positions_to_slots, sparse_attention, write_index_keys, write_sparse_rows, TopK, TopKStats,
                depth_probabilities, info, linear, linear_top_k, merge_states, paged_attention, plan_top_k, release_scratch,
                sample, set_num_threads, set_target, top_k, top_k_per_row, top_k_per_row_decode,
                verify_drafts, write_kv):
    _public.__module__ = "riffle"  # where users find it, and where pickles look for it
del _public

_SUBMODULES = ("jax", "torch", "transformers")


def __getattr__(name: str) -> _Any:
    """The modules for a framework. Raises ImportError, which says what to install, where the framework is missing."""
    if name in _SUBMODULES:
        return _importlib.import_module(f"riffle.{name}")
    raise AttributeError(f"module 'riffle' has no attribute {name!r}")
