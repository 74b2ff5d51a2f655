"""Which tokens of a sequence are on which rank, and in which slot."""

import pytest
import torch
from riffle.vllm import _attention_shards

pytestmark = pytest.mark.quick
PAD = -1


@pytest.mark.parametrize("ranks, interleave", [(2, 1), (2, 16), (3, 4), (4, 8)])
def test_every_token_is_on_one_rank(ranks, interleave):
    """Slots of a rank follow one another; lengths count them."""
    block, lens, starts = 16, [5, 1, 150], [0, 40, 7]
    cu = torch.tensor([0, *lens]).cumsum(0).int()
    positions = torch.cat([torch.arange(start, start + n) for start, n in zip(starts, lens)])
    table = torch.tensor([[3, 1, 9, 12, 13, 20, 21, 22, 23, 24, 25], [2, 8, 4, 0, 0, 0, 0, 0, 0, 0, 0], [5, 6, 7, 10, 11, 14, 15, 16, 17, 18, 19]],
                         dtype=torch.int32)  # fmt: skip
    seen = torch.zeros(len(positions), dtype=torch.int64)
    for rank in range(ranks):
        slots = torch.full((200,), 77, dtype=torch.int64)
        compute = _attention_shards.slot_mapping(None)
        compute(sum(lens), 190, cu, positions, table, table.shape[1], slots, block, ranks, rank, interleave, PAD, 1024)
        assert (slots[sum(lens) : 190] == PAD).all() and (slots[190:] == 77).all()
        here = slots[: sum(lens)]
        seen += here != PAD
        for b, (start, n) in enumerate(zip(starts, lens)):
            mine = here[cu[b] : cu[b + 1]]
            mine = mine[mine != PAD]
            before, after = _attention_shards.local_lens(torch.tensor([start, start + n]), ranks, rank, interleave).tolist()
            expected = [int(table[b, i // block]) * block + i % block for i in range(before, after)]
            assert mine.tolist() == expected
    assert (seen == 1).all()


def test_one_rank_is_left_to_vllm():
    calls = []
    compute = _attention_shards.slot_mapping(lambda *args: calls.append(args))
    compute(1, 2, 3, 4, 5, 6, 7, 8, 1, 0, 1, PAD, 1024)
    assert calls == [(1, 2, 3, 4, 5, 6, 7, 8, 1, 0, 1, PAD, 1024)]
