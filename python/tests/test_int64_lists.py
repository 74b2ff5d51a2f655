"""Lists of paged attention that are int64: read in place, with the bits of int32; numbers beyond int32 are not wrapped."""

import tracemalloc

import numpy as np
import pytest
import riffle

RNG = np.random.default_rng(4)
KEYS, VALUES = RNG.standard_normal((2, 6, 2, 16, 64), np.float32)
Q = RNG.standard_normal((3, 4, 64), np.float32)
LENS, TABLE, CU = [20, 5], [[0, 1], [2, 3]], [0, 1, 3]


def attend(framework, lens, table, cu, dtypes=("i8", "i8", "i8"), **options):
    lists = (framework.make(np.array(x, dtype)) for x, dtype in zip((lens, table, cu), dtypes))
    kv_lens, page_table, cu_q_lens = lists
    arrays = (framework.make(x) for x in (Q, KEYS, VALUES))
    return framework.to_numpy(riffle.paged_attention(*arrays, kv_lens, page_table, cu_q_lens=cu_q_lens, **options))


@pytest.fixture
def wide(framework):
    """A framework whose arrays can be int64."""
    if framework.name == "jax":
        with framework.jax.enable_x64(True):
            yield framework
    else:
        yield framework


@pytest.mark.parametrize("dtypes", ["i8 i8 i8", "i8 i4 i4", "i4 i8 i4", "i4 i4 i8"])
def test_int64_is_int32(wide, dtypes):
    expected = attend(wide, LENS, TABLE, CU, ("i4", "i4", "i4"))
    assert np.array_equal(attend(wide, LENS, TABLE, CU, dtypes.split()), expected)


def test_strided_lists():
    lens, table = np.array([20, 0, 5, 0])[::2], np.array(TABLE).T.copy().T
    expected = riffle.paged_attention(Q[:2], KEYS, VALUES, np.int32(LENS), np.int32(TABLE))
    assert np.array_equal(riffle.paged_attention(Q[:2], KEYS, VALUES, lens, table), expected)


@pytest.mark.parametrize("beyond", [2**31, 2**32, 2**32 + 5, 2**63 - 1, -(2**31) - 1, -(2**63), -(2**32) + 1])
def test_numbers_beyond_int32_are_named(wide, beyond):
    for lists, text in (
        (([20, beyond], TABLE, CU), rf"kv_lens\[1\] = {beyond} is not in 0\.\.32"),
        ((LENS, [[0, beyond], [2, 3]], CU), rf"page_table\[0, 1\] = {beyond} but the pool has 6 pages"),
        ((LENS, TABLE, [0, 1, beyond]), rf"cu_q_lens\[2\] = {beyond} is not the number of tokens of q, 3"),
    ):
        with pytest.raises(ValueError, match=text):
            attend(wide, *lists)


def test_int64_lists_are_not_copied():
    """A page table of 16 MB: a call allocates as much with int64 as with int32."""
    table = np.zeros((2, 10**6), np.int64)
    table[:, :2] = TABLE
    for dtype in (np.int32, np.int64):
        lists = np.array(LENS, dtype), table.astype(dtype)
        tracemalloc.start()
        riffle.paged_attention(Q[:2], KEYS, VALUES, *lists)
        assert tracemalloc.get_traced_memory()[1] < 10**5
        tracemalloc.stop()


@pytest.mark.parametrize("layout", ["HND", "NHD", "JAX"])
def test_what_is_not_read_may_be_anything(layout):
    axes = {"HND": (0, 1, 2, 3), "NHD": (0, 2, 1, 3), "JAX": (1, 0, 2, 3)}[layout]
    pages = KEYS.transpose(axes), VALUES.transpose(axes)
    expected = riffle.paged_attention(Q[:2], *pages, np.int32(LENS), np.int32(TABLE), layout=layout)
    table = np.array([[0, 1, 2**40], [2, -(2**50), 2**31]])
    assert np.array_equal(riffle.paged_attention(Q[:2], *pages, np.array(LENS), table, layout=layout), expected)
    with pytest.raises(ValueError, match=r"page_table\[1, 1\] = -1125899906842624"):
        riffle.paged_attention(Q[:2], *pages, np.array([20, 17]), table, layout=layout)


def test_other_dtypes_stay_refused():
    for dtype in ("f8", "u8", "i2", "M8[s]"):
        with pytest.raises(TypeError, match="kv_lens"):
            riffle.paged_attention(Q[:2], KEYS, VALUES, np.array(LENS).astype(dtype), np.int32(TABLE))


def test_int64_of_a_wrong_shape():
    for lens, table in ((np.array(LENS), np.array([0, 1])), (np.array([LENS]), np.array(TABLE)), (np.array(LENS), np.array(TABLE)[:1])):
        for beyond in (0, 2**40):
            with pytest.raises(ValueError):
                riffle.paged_attention(Q[:2], KEYS, VALUES, lens, table + beyond)
    with pytest.raises(ValueError, match="keys"):
        riffle.paged_attention(Q[:2], KEYS[0], VALUES, np.array(LENS), np.array(TABLE) + 2**40 * np.array([[0], [0]]))


def test_operators_take_int64():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    import riffle.torch

    q, keys, values = (torch.from_numpy(x) for x in (Q, KEYS, VALUES))
    lists = [torch.tensor(x) for x in (LENS, TABLE, CU)]
    expected = riffle.paged_attention(Q, KEYS, VALUES, np.int32(LENS), np.int32(TABLE), cu_q_lens=np.int32(CU))

    def run(q, keys, values, lens, table, cu):
        return riffle.torch.paged_attention(q, keys, values, lens, table, cu_q_lens=cu)

    for attend in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
        assert np.array_equal(attend(q, keys, values, *lists), expected)
        with pytest.raises(RuntimeError, match=r"kv_lens\[0\] = 4294967316 is not in 0\.\.32"):
            attend(q, keys, values, lists[0] + torch.tensor([2**32, 0]), *lists[1:])
