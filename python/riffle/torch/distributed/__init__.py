"""Vocabularies and contexts in shards, one for each process of torch.distributed (gloo): one exact answer on all ranks.

The functions have the names and arguments of riffle.torch's, which a rank calls with its shard, and `group`. All ranks of the
group call them together. A call makes one all-gather of what each shard found (the best k columns of each row, or the state
of a softmax), and every rank merges the same messages in the same order, so answers are the same, bit for bit, on every rank.
Selection and sampling have the bits of the call on the whole tensor.

Shards follow one another in the order of the group's ranks. An error that only one rank meets, such as a tensor of another
dtype, leaves the others waiting until the group's timeout, as in all of torch.distributed.
"""

import torch.distributed as _distributed

if not _distributed.is_available():
    raise ImportError("riffle.torch.distributed needs a PyTorch that was built with torch.distributed")

from riffle.torch.distributed._attention import paged_attention
from riffle.torch.distributed._exchange import shard_sizes
from riffle.torch.distributed._sampling import sample
from riffle.torch.distributed._topk import linear_top_k, topk

__all__ = ["linear_top_k", "paged_attention", "sample", "shard_sizes", "topk"]

for _name in __all__:
    globals()[_name].__module__ = "riffle.torch.distributed"
del _name
