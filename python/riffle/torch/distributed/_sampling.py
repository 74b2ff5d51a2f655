"""sample of logits whose vocabulary is in shards."""

from __future__ import annotations

import re
import zlib
from typing import Any, Sequence

import torch
from torch import Tensor

import riffle
from riffle.torch import _generate
from riffle.torch._library import call, check_tensors
from riffle.torch.distributed._exchange import Ranks, Shards, gather_candidates, merge_candidates, shards_of
from riffle.torch.distributed._topk import check_no_grad, check_on_cpu

_PER_ROW_OPTIONS = ("on_invalid",)  # options of riffle.torch.sample that name no column


def sample(
    logits: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    min_p: float | Tensor = 0.0,
    seed: int | Tensor = 0,
    stream: int | Tensor | None = None,
    position: int | Tensor | None = None,
    return_logprobs: bool = False,
    group=None,
    sizes: Sequence[int] | None = None,
    **options,
) -> Tensor | tuple[Tensor, Tensor]:
    """riffle.torch.sample of logits whose columns, the vocabulary, the ranks of a group hold in shards.

    Tokens are those of riffle.torch.sample of the whole logits with the same arguments, bit for bit, on every rank (all
    with one SIMD target): the same filters, and the same random number for (seed, stream, position).

    What is exchanged, in one all-gather each:

    - Rows with 0 < top_k < vocabulary, and greedy ones: the top_k best columns of each shard, a value and an int32 column
      each. All filters and the draw read nothing but the top_k best of the whole row.
    - The other rows, and those with a top_k so large that this is shorter: their logits. Without top_k a draw adds up weights
      of the whole vocabulary, in an order that the columns fix.

    So give a top_k, 1024 say, where top_p or min_p shall not cost the transfer of the logits.

    Args:
      logits: [rows, columns of this rank] float32, float16 or bfloat16. Shards may differ in size, 0 included; rank r's columns follow
        those of the ranks before it. Rows and dtype are the same on all ranks.
      temperature, top_k, top_p, min_p, seed, stream, position: as for riffle.torch.sample, the same on all ranks.
      return_logprobs: also return the log-probability of each token over the whole vocabulary. It is the unsharded call's
        bit for bit where logits are exchanged; elsewhere each rank sends the logarithm of its shard's sum, and results
        differ from the unsharded call's by at most 2e-6 plus one ulp of float32.
      group: the process group; None: all processes.
      sizes: columns of each rank, as from shard_sizes. None: one more small all-gather finds them, and checks that dtype,
        rows and parameters are the same on all ranks. Where sizes are given nothing checks that, and messages of different
        lengths fail, or wait, as the group's backend does.
      options: on_invalid, as for riffle.torch.sample. Options that name columns (penalties, biases, masks of tokens)
        must be applied to the shards before the call.

    Returns:
      int32 [rows] tokens of the whole vocabulary, or (tokens, float32 [rows]), the same on every rank.

    Raises:
      RuntimeError: what riffle.torch.sample raises, on all ranks, naming the column of the whole vocabulary; arguments
        that differ between ranks; sizes that do not fit; no process group; logits that require grad.
      NotImplementedError: a device that is not the CPU.
      TypeError: logits is not a tensor; a parameter is neither a tensor nor a number; another option.
    """
    check_tensors("sample", dict(logits=logits))
    for name in options:
        if name not in _PER_ROW_OPTIONS:
            raise TypeError(f"sample() got an unexpected argument {name!r}; of riffle.torch.sample's options it takes {_PER_ROW_OPTIONS}")
    check_on_cpu(logits=logits)
    check_no_grad("sample", logits=logits)
    if logits.dim() != 2:
        raise RuntimeError(f"logits has shape {tuple(logits.shape)}; it must be [rows, columns]")
    if logits.stride(1) != 1 and logits.shape[1] > 1:
        logits = logits.contiguous()
    given = dict(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, stream=stream, position=position)
    parameters = _Parameters(logits.shape[0], {**given, "seed": seed, **options})
    parameters.check(logits)
    ranks = Ranks(group)
    rows, columns = logits.shape
    shards = shards_of(ranks, columns, sizes, dict(rows=rows), dict(dtype=_DTYPES.index(logits.dtype), **parameters.digests()))
    if shards.columns == 0:
        raise RuntimeError("logits has no columns on any rank")
    best = parameters.best(shards, logits.element_size())
    tokens, logprobs = torch.empty(rows, dtype=torch.int32), torch.empty(rows)
    for chosen, draw in ((best > 0, _draw_from_candidates), (best == 0, _draw_from_logits)):
        numbers = chosen.nonzero().squeeze(1)
        if numbers.numel():
            of_rows = (logits, parameters) if numbers.numel() == rows else (logits[numbers], parameters.of_rows(numbers))
            tokens[numbers], logprobs[numbers] = draw(ranks, shards, *of_rows, best[numbers], return_logprobs)
    return (tokens, logprobs) if return_logprobs else tokens


_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class _Parameters:
    """The parameters of the draws of some rows: one for all, or tensors with an element for each row.

    `numbers`: of those rows in the caller's logits, for the texts of errors.
    """

    def __init__(self, rows: int, given: dict, numbers: Tensor | None = None):
        self._rows = rows
        self._given = given
        self._numbers = torch.arange(rows) if numbers is None else numbers

    def check(self, logits: Tensor) -> None:
        """Has riffle.torch.sample check them, with a row of one column, before anything is exchanged."""
        _generate.sample(logits.new_zeros((self._rows, 1)), **self._given)

    def draw(self, logits: Tensor, return_logprobs: bool, columns: Tensor | None = None, **others) -> Any:
        """riffle.torch.sample of these rows. `columns` [rows, n]: which columns of the whole vocabulary logits holds; None: all."""
        given = {**self._given, **others}
        if given["stream"] is None:
            given["stream"] = self._numbers
        try:
            return _generate.sample(logits, return_logprobs=return_logprobs, **given)
        except RuntimeError as error:
            raise RuntimeError(_LOGIT.sub(lambda found: self._named(found, columns), str(error))) from None

    def _named(self, found: re.Match, columns: Tensor | None) -> str:
        row = int(found[1])
        name = f"logits[{self._numbers[row]}"
        if found[2]:
            name += f", {found[2] if columns is None else columns[row, int(found[2])]}"
        return name + "]"

    def of_rows(self, numbers: Tensor) -> _Parameters:
        def of(value):
            return value[numbers] if isinstance(value, Tensor) and value.numel() == self._rows else value

        return _Parameters(numbers.numel(), {name: of(value) for name, value in self._given.items()}, self._numbers[numbers])

    def digests(self) -> dict[str, int]:
        """A number for each parameter, by which ranks see whether theirs are the same."""
        return {name: zlib.crc32(bytes(value.reshape(-1).view(torch.uint8).tolist()) if isinstance(value, Tensor) else repr(value).encode())
                for name, value in sorted(self._given.items())}  # fmt: skip

    def best(self, shards: Shards, element: int) -> Tensor:
        """int64 [rows]: how many of its best columns a row's draw reads, 0 where sending all logits is less."""
        top_k, temperature = (_generate._to_supported_dtype(_generate._parameter(name, self._given[name]), name == "top_k")
                              for name in ("top_k", "temperature"))  # fmt: skip
        best = torch.where(temperature == 0, 1, top_k).expand(self._rows)
        few = (best > 0) & (best < shards.columns) & (best <= max(shards.sizes) * element // (element + 4))
        return torch.where(few, best, 0).long()


_LOGIT = re.compile(r"^logits\[(\d+)(?:, (\d+))?\]")


def _draw_from_logits(ranks: Ranks, shards: Shards, logits: Tensor, parameters: _Parameters, best: Tensor, return_logprobs: bool):
    """(tokens, log-probabilities or NaN) of some rows, whose logits are exchanged."""
    rows, columns = logits.shape
    message = logits.new_zeros((rows, max(shards.sizes)))
    message[:, :columns] = logits
    received = ranks.gather(message.view(torch.uint8)).view(logits.dtype)
    whole = torch.cat([shard[:, :size] for shard, size in zip(received, shards.sizes)], dim=1)
    drawn = parameters.draw(whole, return_logprobs)
    return drawn if return_logprobs else (drawn, torch.nan)


def _draw_from_candidates(ranks: Ranks, shards: Shards, logits: Tensor, parameters: _Parameters, best: Tensor, return_logprobs: bool):
    """(tokens, log-probabilities or NaN) of some rows, of whose shards best.max() columns each are exchanged."""
    (rows, columns), max_best = logits.shape, int(best.max())
    values, found = logits, logits.new_empty((rows, 0), dtype=torch.int32)
    if columns:
        top: Any = call(riffle.top_k, logits, min(max_best, columns))
        values, found = top.values, top.indices
    extra = _shard_mass(logits, values).flatten() if return_logprobs else None
    values, ids, masses = gather_candidates(ranks, shards, max_best, values, found, extra)
    values, ids = merge_candidates(values, ids, max_best)
    # One more column, of -inf, keeps top_k below the number of columns, as in the whole matrix: then weights are added best first.
    values = torch.cat([values, values.new_full((rows, 1), -torch.inf)], dim=1)
    places = parameters.draw(values, False, ids, top_k=best).long()
    tokens = torch.where(places < 0, places, _at(ids, places)).int()
    if not return_logprobs:
        return tokens, torch.nan
    logprobs = _log_probabilities(_at(values, places).double(), masses.view(ranks.count, 2, rows).double())
    return tokens, torch.where(places < 0, torch.nan, logprobs).float()


def _at(x: Tensor, places: Tensor) -> Tensor:
    """x[row, places[row]]; any element of the row where the place is negative."""
    return x.gather(1, places.clamp(min=0)[:, None]).squeeze(1)


def _shard_mass(logits: Tensor, best: Tensor) -> Tensor:
    """float32 [2, rows]: the largest logit of the shard, and the logarithm of the sum of exp(logit - largest).

    -inf and -inf, or NaN, where the shard has nothing to draw.
    """
    result = torch.full((2, logits.shape[0]), -torch.inf)
    if logits.shape[1]:
        result[0] = best[:, 0]
        some = result[0] > -torch.inf
        if some.any():  # the log-probability of the best logit is that sum's, negated
            logprobs = _generate.sample(logits if some.all() else logits[some], temperature=0, return_logprobs=True)[1]
            result[1, some] = -logprobs
    return result


def _log_probabilities(drawn: Tensor, masses: Tensor) -> Tensor:
    """Log-probabilities of the logits drawn [rows], from each rank's mass [ranks, 2, rows], made by _shard_mass."""
    shard_max, log_sums = masses[:, 0], masses[:, 1]
    row_max = shard_max.amax(0)
    # The difference of equal infinities shall be 0.
    below = torch.where(shard_max == row_max, 0, shard_max - row_max)
    return torch.where(drawn == row_max, 0, drawn - row_max) - (below.exp() * log_sums.exp()).sum(0).log()
