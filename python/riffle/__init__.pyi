# Array: NumPy, PyTorch (CPU), JAX (CPU) or another DLPack producer on the CPU; results are of the first one's framework.
from typing import Any, Literal, NamedTuple, Sequence

import numpy

Array = Any

__version__: str

class TopK(NamedTuple):
    values: Array  # [..., k], dtype of x
    indices: Array  # [..., k], int32

class TopKStats(NamedTuple):
    kth_value: Array  # [rows] float32
    ties_at_kth: Array  # [rows] int64
    elements_examined: Array  # [rows] int64
    depth: Array  # [rows] int32

def top_k(
    x: Array,
    k: int | Array,
    *,
    sorted: bool = True,
    algorithm: Literal["auto", "bucket_maxima", "lane_sort"] = "auto",
    lanes: int = 128,
    depth_schedule: Sequence[int] | None = None,
    out: TopK | None = None,
    return_stats: bool = False,
) -> TopK | tuple[TopK, TopKStats]: ...
def top_k_per_row(
    x: Array, starts: Array, ends: Array, k: int, *, sorted: bool = True, out: Array | None = None
) -> Array: ...
def top_k_per_row_decode(
    x: Array, seq_lens: Array, k: int, *, next_n: int = 1, out: Array | None = None
) -> Array: ...
def linear_top_k(x: Array, weight: Array, k: int, *, bias: Array | None = None) -> TopK: ...
def plan_top_k(
    n: int, k: int, *, rows: int = 1, lanes: int = 128, depth_schedule: Sequence[int] | None = None
) -> dict: ...
def depth_probabilities(k: int, lanes: int = 128) -> numpy.ndarray: ...
def sample(
    logits: Array,
    *,
    temperature: float | Array = 1.0,
    top_k: int | Array = 0,
    top_p: float | Array = 1.0,
    min_p: float | Array = 0.0,
    seed: int = 0,
    stream: Array | None = None,
    position: Array | None = None,
    return_logprobs: bool = False,
) -> Array | tuple[Array, Array]: ...

class KvCache:
    def __init__(
        self,
        *,
        layers: int,
        kv_heads: int,
        head_dim: int,
        pages: int,
        page_size: int = 16,
        dtype: str = "bfloat16",
    ) -> None: ...
    def create(self) -> int: ...
    def fork(self, seq: int) -> int: ...
    def extend(self, seq: int, tokens: int) -> None: ...
    def write(self, layer: int, seq: int, position: int, keys: Array, values: Array) -> None: ...
    def truncate(self, seq: int, length: int) -> None: ...
    def free(self, seq: int) -> None: ...
    def length(self, seq: int) -> int: ...
    def batch(self, seqs: Sequence[int]) -> tuple[Array, Array]: ...  # int32 kv_lens [B], page_table [B, max_pages]
    def keys(self, layer: int) -> Array: ...  # [pages, kv_heads, page_size, head_dim]
    def values(self, layer: int) -> Array: ...
    @property
    def pages_free(self) -> int: ...
    @property
    def pages_shared(self) -> int: ...

class OutOfPages(RuntimeError): ...

def paged_attention(
    q: Array,
    keys: Array,
    values: Array,
    kv_lens: Array,
    page_table: Array,
    *,
    cu_q_lens: Array | None = None,
    layout: Literal["HND", "NHD", "JAX"] = "HND",
    scale: float | None = None,
    causal: bool = True,
    window: int | None = None,
    window_right: int | None = None,
    soft_cap: float | None = None,
    sinks: Array | None = None,
    mask_value: float | None = None,
    out: Array | None = None,
    return_lse: bool = False,
) -> Array | tuple[Array, Array]: ...
def merge_states(outs: Sequence[Array], lses: Sequence[Array]) -> tuple[Array, Array]: ...
def info() -> dict: ...
def set_num_threads(n: int) -> None: ...
def set_target(name: str | None) -> None: ...
