"""Top-k of ranges of rows, with the signatures of FlagGems and vLLM."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_compiling

from riffle import _core
from riffle.torch._library import LIBRARY, call, can_bypass_dispatcher, check_tensors, in_cpu_memory, integer


def top_k_per_row_prefill(
    logits: Tensor,
    row_starts: Tensor,
    row_ends: Tensor,
    indices: Tensor,
    num_rows: int,
    stride0: int,
    stride1: int,
    top_k: int,
) -> None:
    """FlagGems' and vLLM's top_k_per_row_prefill: the columns of the k best of a range of each row, into `indices`.

    Unlike theirs it never writes to logits, takes any k and dtype, and puts the best first (of equal ones the lower
    column; NaN above +inf).

    Args:
      logits: [>= num_rows, n] floating-point numbers or integers; read in place where stride1 is 1, else copied.
      row_starts, row_ends: int32 [>= num_rows]; row r selects from the columns [row_starts[r], row_ends[r]), none if
        that is empty. An end past n is clamped to n.
      indices: int32 [>= num_rows, >= top_k]; [num_rows, top_k] of it is written: columns relative to the row's start,
        padded with -1.
      num_rows: rows to do.
      stride0, stride1: of logits, in elements; usually logits.stride(0) and logits.stride(1). Others are respected
        where they stay within its storage.
      top_k: at least 1; may exceed n.

    Raises:
      RuntimeError: a shape, dtype or stride as above, a negative start. Nothing has been written then.
      TypeError: logits, a list or indices is not a tensor.

    >>> import torch, riffle.torch
    >>> logits = torch.tensor([[3., 1., 4., 1., 5.], [2., 7., 1., 8., 2.]])
    >>> starts, ends = torch.tensor([1, 3], dtype=torch.int32), torch.tensor([5, 9], dtype=torch.int32)
    >>> indices = torch.empty(2, 3, dtype=torch.int32)
    >>> riffle.torch.top_k_per_row_prefill(logits, starts, ends, indices, 2, 5, 1, 3)
    >>> indices
    tensor([[ 3,  1,  0],
            [ 0,  1, -1]], dtype=torch.int32)
    """
    args = logits, row_starts, row_ends, indices, *_ints(num_rows=num_rows, stride0=stride0, stride1=stride1, top_k=top_k)
    if not is_compiling() and can_bypass_dispatcher(logits, row_starts, row_ends, indices) and in_cpu_memory(logits):
        _prefill_cpu(*args)
    else:
        tensors = dict(logits=logits, row_starts=row_starts, row_ends=row_ends, indices=indices)
        check_tensors("top_k_per_row_prefill", tensors)
        torch.ops.riffle.top_k_per_row_prefill(*args)


def top_k_per_row_decode(
    logits: Tensor,
    next_n: int,
    seq_lens: Tensor,
    indices: Tensor,
    num_rows: int,
    stride0: int,
    stride1: int,
    top_k: int,
) -> None:
    """FlagGems' and vLLM's top_k_per_row_decode: top_k_per_row_prefill where a row sees the tokens before it.

    Args:
      next_n: rows of a sequence, at least 1.
      seq_lens: int32 [>= ceil(num_rows / next_n)]; row r sees the columns
        [0, seq_lens[r // next_n] - next_n + r % next_n + 1), of which n at most. Or int32 [>= ceil(num_rows / next_n),
        next_n], a length for each row: row r sees the columns [0, seq_lens[r // next_n, r % next_n]), of which n at most.
      The others as in top_k_per_row_prefill.

    >>> import torch, riffle.torch
    >>> logits = torch.tensor([[3., 1., 4., 1., 5.], [2., 7., 1., 8., 2.]])
    >>> indices = torch.empty(2, 3, dtype=torch.int32)
    >>> riffle.torch.top_k_per_row_decode(logits, 2, torch.tensor([4], dtype=torch.int32), indices, 2, 5, 1, 3)
    >>> indices
    tensor([[2, 0, 1],
            [3, 1, 0]], dtype=torch.int32)
    >>> riffle.torch.top_k_per_row_decode(logits, 2, torch.tensor([[1, 5]], dtype=torch.int32), indices, 2, 5, 1, 3)
    >>> indices
    tensor([[ 0, -1, -1],
            [ 3,  1,  0]], dtype=torch.int32)
    """
    next_n, *numbers = _ints(next_n=next_n, num_rows=num_rows, stride0=stride0, stride1=stride1, top_k=top_k)
    args = logits, next_n, seq_lens, indices, *numbers
    if not is_compiling() and can_bypass_dispatcher(logits, seq_lens, indices) and in_cpu_memory(logits):
        _decode_cpu(*args)
    else:
        check_tensors("top_k_per_row_decode", dict(logits=logits, seq_lens=seq_lens, indices=indices))
        torch.ops.riffle.top_k_per_row_decode(*args)


def _ints(**numbers):
    """The numbers, each an int of 64 bits."""
    if is_compiling():
        return numbers.values()
    return [n if type(n) is int and -(2**63) <= n < 2**63 else _int64(name, n) for name, n in numbers.items()]


def _int64(name, value):
    number = integer(name, value)
    if isinstance(number, int) and not -(2**63) <= number < 2**63:
        raise RuntimeError(f"{name} = {number} is not in the range of int64")
    return int(number) if isinstance(number, bool) else number


def _rows(logits, num_rows, stride0, stride1):
    """logits as the strides say, with contiguous columns."""
    if logits.dim() != 2:
        raise RuntimeError(f"logits has shape {tuple(logits.shape)}; it must be [num_rows, n]")
    if stride1 == 1 and logits.stride() == (stride0, stride1):
        return logits
    columns = logits.shape[1]
    # as_strided stays within the storage, or raises.
    rows = logits.as_strided((num_rows, columns), (stride0, stride1))
    return rows if stride1 == 1 or columns <= 1 else rows.contiguous()


def _per_row(function, logits, ranges, indices, num_rows, top_k):
    """function(logits, *ranges, indices, num_rows, top_k) also where logits has no columns or indices' are strided."""
    if indices.dim() == 2 and logits.dim() == 2 and logits.shape[1] == 0 and indices.shape[0] >= num_rows >= 0:
        indices[:num_rows, :top_k].fill_(-1)
    elif indices.dim() == 2 and indices.stride(1) != 1 and indices.shape[1] > 1:
        contiguous = indices.contiguous()
        call(function, logits, *ranges, contiguous, num_rows, top_k)
        indices.copy_(contiguous)
    else:
        call(function, logits, *ranges, indices, num_rows, top_k)


def _prefill_cpu(logits, row_starts, row_ends, indices, num_rows, stride0, stride1, top_k):
    rows = _rows(logits, num_rows, stride0, stride1)
    _per_row(_core.torch_top_k_per_row_prefill, rows, (row_starts, row_ends), indices, num_rows, top_k)


def _decode_cpu(logits, next_n, seq_lens, indices, num_rows, stride0, stride1, top_k):
    rows = _rows(logits, num_rows, stride0, stride1)
    if seq_lens.dim() == 2:  # a length for each row
        _check_row_lengths(seq_lens, num_rows, next_n)
        ends = seq_lens.reshape(-1)
        ranges = ends.new_zeros(ends.shape), ends
        _per_row(_core.torch_top_k_per_row_prefill, rows, ranges, indices, num_rows, top_k)
        return
    _per_row(_core.torch_top_k_per_row_decode, rows, (next_n, seq_lens), indices, num_rows, top_k)


def _check_row_lengths(seq_lens, num_rows, next_n):
    shape = tuple(seq_lens.shape)
    if shape[1] != next_n or seq_lens.numel() < num_rows:
        raise RuntimeError(
            f"seq_lens has shape {shape}; for num_rows = {num_rows} with next_n = {next_n} it must be [sequences] or "
            f"[sequences, {next_n}] with at least {num_rows} rows in all"
        )
    if seq_lens.dtype is not torch.int32:
        raise RuntimeError(f"seq_lens has dtype {seq_lens.dtype}; it must be int32")


def _in_place_fake(*args):
    return None


_TAGS = (torch.Tag.pt2_compliant_tag,)
_PER_ROW = "Tensor(a!) indices, SymInt num_rows, SymInt stride0, SymInt stride1, SymInt top_k) -> ()"
LIBRARY.define(
    f"top_k_per_row_prefill(Tensor logits, Tensor row_starts, Tensor row_ends, {_PER_ROW}", tags=_TAGS
)
LIBRARY.impl("top_k_per_row_prefill", _prefill_cpu, "CPU")
torch.library.register_fake("riffle::top_k_per_row_prefill", _in_place_fake, lib=LIBRARY)
LIBRARY.define(f"top_k_per_row_decode(Tensor logits, SymInt next_n, Tensor seq_lens, {_PER_ROW}", tags=_TAGS)
LIBRARY.impl("top_k_per_row_decode", _decode_cpu, "CPU")
torch.library.register_fake("riffle::top_k_per_row_decode", _in_place_fake, lib=LIBRARY)
