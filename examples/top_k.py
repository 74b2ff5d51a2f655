"""The 5 best of each row of logits, NumPy's and PyTorch's, checked against a stable sort."""

import numpy as np
import riffle


def main():
    rng = np.random.default_rng(1)
    # Rounded, so that equal values occur: the lower index comes first then.
    logits = np.round(rng.standard_normal((4, 50_000), np.float32) * 64) / 64

    values, indices = riffle.top_k(logits, 5)
    print(indices)

    expected = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    assert np.array_equal(indices, expected), expected
    assert np.array_equal(values, np.take_along_axis(logits, expected, axis=1))

    # A range of each row, as indices relative to its start; -1 where the range is shorter than k.
    starts = np.array([0, 100, 49_999, 7], np.int32)
    ends = np.array([50_000, 200, 50_000, 7], np.int32)
    of_range = riffle.top_k_per_row(logits, starts, ends, 3)
    print(of_range)
    assert np.array_equal(of_range[0], expected[0, :3])
    assert of_range[1].tolist() == np.argsort(-logits[1, 100:200], kind="stable")[:3].tolist()
    assert of_range[2].tolist() == [0, -1, -1] and of_range[3].tolist() == [-1, -1, -1]

    try:
        import torch
    except ImportError:
        return
    tensor = torch.from_numpy(logits)
    assert riffle.top_k(tensor, 5).indices.tolist() == expected.tolist()  # PyTorch in, PyTorch out


if __name__ == "__main__":
    main()
