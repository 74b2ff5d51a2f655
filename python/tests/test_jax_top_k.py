"""riffle.jax.top_k and top_k_per_row: against riffle and jax.lax.top_k; under jit, vmap and grad."""

import concurrent.futures
import doctest
import os
import subprocess
import sys

import numpy as np
import pytest
import riffle
from frameworks import DTYPES

jax = pytest.importorskip("jax", reason="JAX is not installed")
import jax.numpy as jnp  # noqa: E402
import riffle.jax  # noqa: E402
from jax_programs import only_custom_calls, same_bits  # noqa: E402

RuntimeFailure = jax.errors.JaxRuntimeError


@pytest.fixture
def rng():
    return np.random.default_rng(6)



@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape, k", [((1,), 1), ((7,), 3), ((3, 1000), 1000), ((2, 3, 5000), 64), ((32, 20000), 64)])
def test_top_k_is_riffles(rng, dtype, shape, k):
    x = rng.standard_normal(shape, np.float32).astype(dtype)
    expected = riffle.top_k(x, k)
    for function in (lambda x: riffle.jax.top_k(x, k), jax.jit(lambda x: riffle.jax.top_k(x, k))):
        values, indices = function(jnp.asarray(x))
        assert isinstance(values, jax.Array)
        assert same_bits(values, expected.values) and same_bits(indices, expected.indices)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n, k", [(1, 1), (5, 0), (100, 7), (1024, 1), (1024, 1024), (3000, 50), (20000, 2048)])
def test_top_k_is_lax(rng, dtype, n, k):
    x = rng.integers(-40, 40, (3, n)).astype(dtype) if n == 3000 else rng.standard_normal((3, n)).astype(dtype)
    x[x == 0] = 0  # of one sign
    expected = jax.lax.top_k(jnp.asarray(x), k)
    for mine, theirs in zip(riffle.jax.top_k(jnp.asarray(x), k), expected):
        assert same_bits(mine, theirs)


def test_where_top_k_differs_from_lax():
    """The contract of riffle's order against XLA's total order of IEEE 754."""
    nan = np.float32(np.nan)
    x = jnp.asarray(np.array([-0.0, 0.0, 1.0, -nan, nan, np.inf], np.float32))
    assert riffle.jax.top_k(x, 6)[1].tolist() == [3, 4, 5, 2, 0, 1]
    assert jax.lax.top_k(x, 6)[1].tolist() == [4, 5, 2, 1, 0, 3]
    assert np.signbit(riffle.jax.top_k(x, 1)[0]).all()  # its bits are those of operand


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "complex64"])
def test_dtypes_that_only_lax_takes(dtype):
    with pytest.raises(TypeError, match=f"operand must be .* or bool, not {dtype}"):
        riffle.jax.top_k(jnp.zeros((2, 3), dtype), 1)


@pytest.mark.parametrize("axis", [-3, -2, -1, 0, 1, 2])
def test_axis(rng, axis):
    x = jnp.asarray(rng.standard_normal((4, 50, 6), np.float32))
    for mine, theirs in zip(riffle.jax.top_k(x, 3, axis=axis), jax.lax.top_k(x, 3, axis=axis)):
        assert same_bits(mine, theirs)


def test_is_stable(rng):
    """As jax.lax.top_k of newer JAX; equal values come out by index either way."""
    x = jnp.asarray(rng.integers(0, 3, (3, 40)).astype(np.float32))
    for stable in (True, False, np.bool_(False)):
        for a, b in zip(riffle.jax.top_k(x, 5, is_stable=stable), jax.lax.top_k(x, 5)):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(TypeError, match="is_stable must be a bool, not 1"):
        riffle.jax.top_k(x, 5, is_stable=1)


def test_empty_batches_and_numpy():
    for shape in ((0, 5), (2, 0, 5)):
        values, indices = riffle.jax.top_k(jnp.zeros(shape), 2)
        assert values.shape == indices.shape == (*shape[:-1], 2)
    values, indices = riffle.jax.top_k(np.array([1, 3, 2], np.float32), 1)
    assert values.tolist() == [3] and indices.tolist() == [1]
    assert [a.shape for a in riffle.jax.top_k(jnp.zeros((2, 0)), 0)] == [(2, 0), (2, 0)]


@pytest.mark.parametrize("in_axes, shape", [(0, (3, 4, 100)), (1, (4, 3, 100)), (2, (4, 100, 3))])
def test_vmap_of_top_k(rng, in_axes, shape):
    x = rng.standard_normal(shape, np.float32)
    values, indices = jax.jit(jax.vmap(lambda x: riffle.jax.top_k(x, 5), in_axes))(x)
    expected = riffle.top_k(np.ascontiguousarray(np.moveaxis(x, in_axes, 0)), 5)
    assert same_bits(values, expected.values) and same_bits(indices, expected.indices)


def test_nested_vmap_scan_and_shape_evaluation(rng):
    x = rng.standard_normal((2, 3, 40), np.float32)
    expected = riffle.top_k(x, 4)
    one = lambda x: riffle.jax.top_k(x, 4)  # noqa: E731
    assert same_bits(jax.vmap(jax.vmap(one))(x)[1], expected.indices)
    _, scanned = jax.lax.scan(lambda carry, row: (carry, one(row)), 0, x)
    assert same_bits(scanned[0], expected.values)
    assert jax.eval_shape(one, jax.ShapeDtypeStruct((9, 40), jnp.bfloat16))[0].shape == (9, 4)


def test_derivatives_are_laxs(rng):
    x = jnp.asarray(rng.permutation(240).reshape(4, 60), jnp.float32)
    t = jnp.asarray(rng.standard_normal((4, 60), np.float32))

    def weighted(top_k):
        return lambda x: (top_k(x, 5)[0] * jnp.arange(1.0, 6.0)).sum()

    for transform in (jax.grad, lambda f: jax.jit(jax.grad(f)), jax.jacfwd):
        assert same_bits(transform(weighted(riffle.jax.top_k))(x), transform(weighted(jax.lax.top_k))(x))
    for mine, theirs in zip(jax.jvp(lambda x: riffle.jax.top_k(x, 5)[0], (x,), (t,)),
                            jax.jvp(lambda x: jax.lax.top_k(x, 5)[0], (x,), (t,))):
        assert same_bits(mine, theirs)
    mine = jax.vmap(jax.grad(lambda row: riffle.jax.top_k(row, 5, axis=0)[0][4]))(x)
    assert (np.count_nonzero(np.asarray(mine), axis=1) == 1).all()
    assert (np.asarray(mine).argmax(1) == riffle.top_k(np.asarray(x), 5).indices[:, 4]).all()


SHARDED = '''
import jax, numpy as np, riffle, riffle.jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
mesh = Mesh(np.array(jax.devices()), ("d",))
rows = np.random.default_rng(0).standard_normal((4, 1000), np.float32)
x = jax.device_put(rows, NamedSharding(mesh, P("d")))
one = lambda x: riffle.jax.top_k(x, 5)
for call in (jax.jit(one), jax.jit(jax.shard_map(one, mesh=mesh, in_specs=P("d"), out_specs=P("d")))):
    assert (np.asarray(call(x)[1]) == riffle.top_k(rows, 5).indices).all()
    print("all-gather" in call.lower(x).compile().as_text())
'''


@pytest.mark.skipif(not hasattr(jax, "shard_map"), reason="this JAX has shard_map elsewhere")
def test_shard_map_leaves_rows_where_they_are():
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    process = subprocess.run([sys.executable, "-c", SHARDED], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == ["True", "False"]


def test_calls_from_several_threads(rng):
    """Also while kernels are switched: calls and set_target wait for each other."""
    x = rng.standard_normal((8, 20000), np.float32)
    expected = riffle.top_k(x, 16)
    call, operand = jax.jit(lambda x: riffle.jax.top_k(x, 16)), jnp.asarray(x)

    def run(_):
        return [call(operand)[1] for _ in range(30)]

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        results = pool.map(run, range(3))
        for target in riffle.info()["targets"] * 5:
            riffle.set_target(target)
        assert all(same_bits(indices, expected.indices) for batch in results for indices in batch)


def test_indices_have_no_derivative():
    _, tangents = jax.jvp(lambda x: riffle.jax.top_k(x, 2), (jnp.arange(5.0),), (jnp.ones(5),))
    assert tangents[1].dtype == jax.dtypes.float0


@pytest.mark.parametrize("call, error, text", [
    (lambda x: riffle.jax.top_k(x, 6), ValueError, "k = 6 is not in 0..5"),
    (lambda x: riffle.jax.top_k(x, -1), ValueError, "k = -1"),
    (lambda x: riffle.jax.top_k(x, 1.0), TypeError, "k must be an int, not 1.0"),
    (lambda x: riffle.jax.top_k(x, 3, axis=0), ValueError, "k = 3 is not in 0..2, the size of axis 0"),
    (lambda x: riffle.jax.top_k(x, 1, axis=2), ValueError, "axis = 2"),
    (lambda x: riffle.jax.top_k(x, 1, axis=-3), ValueError, "axis = -3"),
    (lambda x: riffle.jax.top_k(x[0, 0], 1), ValueError, "axis = -1"),
    (lambda x: riffle.jax.top_k([[1.0]], 1), TypeError, "must be an array, not ..1.0..$"),
    (lambda x: jax.jit(riffle.jax.top_k)(x, 2), TypeError, "k must be an int"),
])
def test_bad_top_k(call, error, text):
    with pytest.raises(error, match=text.replace("[", r"\[")):
        call(jnp.zeros((2, 5)))


def test_top_k_per_row(rng):
    x = rng.standard_normal((5, 300), np.float32)
    starts, ends = np.array([0, 10, 299, 50, 7], np.int32), np.array([300, 14, 300, 20, 200], np.int32)
    expected = riffle.top_k_per_row(x, starts, ends, 9)
    call = jax.jit(lambda x, starts, ends: riffle.jax.top_k_per_row(x, starts, ends, 9))
    assert same_bits(call(x, starts, ends), expected)
    assert only_custom_calls(call, x, starts, ends)
    # Every combination of operands with and without the axis of a batch.
    for axes in np.ndindex(2, 2, 2):
        if axes != (1, 1, 1):
            in_axes = tuple(None if a else 0 for a in axes)
            operands = [a if axis is None else np.stack([a, a[::-1], a]) for a, axis in zip((x, starts, ends), in_axes)]
            got = jax.vmap(call, in_axes)(*operands)
            for i in range(3):
                one = [o if axis is None else o[i] for o, axis in zip(operands, in_axes)]
                assert same_bits(got[i], riffle.top_k_per_row(*one, 9))


@pytest.mark.parametrize("starts, ends, text", [
    ([0, -1], [5, 5], r"starts\[1\] = -1 is negative"),
    ([0, 0], [5, 6], r"ends\[1\] = 6 is past the 5 columns"),
])
def test_bad_ranges_fail_when_they_run(starts, ends, text):
    call = jax.jit(lambda x, starts, ends: riffle.jax.top_k_per_row(x, starts, ends, 2))
    x = jnp.ones((2, 5))
    with pytest.raises(RuntimeFailure, match=text):
        jax.block_until_ready(call(x, jnp.array(starts), jnp.array(ends)))
    assert call(x, jnp.array([0, 3]), jnp.array([5, 5])).tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize("arguments, error, text", [
    ((np.zeros(5, np.float32), [0], [5], 2), ValueError, "must be .rows, n."),
    ((np.zeros((1, 0), np.float32), [0], [0], 2), ValueError, "empty"),
    ((np.zeros((1, 5), np.float32), [0, 0], [5], 2), ValueError, "starts has shape"),
    ((np.zeros((1, 5), np.float32), [0], [5], 0), ValueError, "k = 0"),
    ((np.zeros((1, 5), np.complex64), [0], [5], 2), TypeError, "x must be"),
    ((np.zeros((1, 5), np.float32), [0.5], [5], 2), TypeError, "starts must be int32"),
])
def test_bad_top_k_per_row(arguments, error, text):
    x, starts, ends, k = arguments
    with pytest.raises(error, match=text):
        riffle.jax.top_k_per_row(x, np.array(starts), np.array(ends), k)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_riffle_top_k_of_jax_arrays_is_the_same_call(rng, dtype, monkeypatch):
    x = rng.standard_normal((4, 5000), np.float32).astype(dtype)
    expected = riffle.top_k(x, 8)
    calls = []
    monkeypatch.setattr("riffle._jax._top_k", lambda k, axis: calls.append(k) or (lambda x: riffle.jax.top_k(x, k)))
    top = riffle.top_k(jnp.asarray(x), 8)
    assert calls == [8]
    assert isinstance(top, riffle.TopK) and isinstance(top.values, jax.Array)
    assert same_bits(top.values, expected.values) and same_bits(top.indices, expected.indices)
    # What the custom call does not do, and wrong arguments, go to riffle's own function.
    for other in (dict(sorted=False), dict(algorithm="lane_sort"), dict(lanes=64), dict(return_stats=True)):
        riffle.top_k(jnp.asarray(x), 8, **other)
    for k, error in ((5001, ValueError), (0, ValueError), (1.0, TypeError)):
        with pytest.raises(error, match="k "):
            riffle.top_k(jnp.asarray(x), k)
    with pytest.raises(TypeError, match="x "):
        riffle.top_k(jnp.zeros((2, 9), jnp.complex64), 8)
    assert calls == [8]


def test_examples():
    result = doctest.testmod(riffle.jax, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0 and result.attempted >= 5
