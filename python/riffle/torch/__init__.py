"""Riffle in the place of PyTorch's functions, for CPU tensors: change the import, keep the rest.

Each function is an operator too, torch.ops.riffle.*, with a fake kernel: torch.compile(fullgraph=True), torch.export and
torch.func keep it. Tensors are read in place; a last axis that is not contiguous is made so first. Errors are of
PyTorch's kind: RuntimeError and its NotImplementedError, IndexError for an axis, TypeError for what is no tensor.

riffle is not built against PyTorch: what is installed is used.
"""

try:
    import torch as _torch
except ImportError as error:
    raise ImportError("riffle.torch needs PyTorch: pip install torch") from error

from riffle.torch._attention import paged_attention
from riffle.torch._dense_attention import scaled_dot_product_attention
from riffle.torch._generate import apply_top_k_top_p_, linear_top_k, sample
from riffle.torch._sparse import flash_mla_sparse_fwd, flash_mla_with_kvcache, fp8_mqa_logits, fp8_paged_mqa_logits
from riffle.torch._threads import use_torch_threads
from riffle.torch._topk import topk
from riffle.torch._topk_per_row import top_k_per_row_decode, top_k_per_row_prefill
from riffle.torch._write_kv import write_kv

__all__ = [
    "apply_top_k_top_p_",
    "flash_mla_sparse_fwd",
    "flash_mla_with_kvcache",
    "fp8_mqa_logits",
    "fp8_paged_mqa_logits",
    "linear_top_k",
    "paged_attention",
    "sample",
    "scaled_dot_product_attention",
    "top_k_per_row_decode",
    "top_k_per_row_prefill",
    "topk",
    "use_torch_threads",
    "write_kv",
]

for _name in __all__:
    globals()[_name].__module__ = "riffle.torch"
del _name, _torch
