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
def plan_top_k(
    n: int, k: int, *, rows: int = 1, lanes: int = 128, depth_schedule: Sequence[int] | None = None
) -> dict: ...
def depth_probabilities(k: int, lanes: int = 128) -> numpy.ndarray: ...
def info() -> dict: ...
def set_num_threads(n: int) -> None: ...
def set_target(name: str | None) -> None: ...
