"""One face for the frameworks whose arrays riffle takes. NumPy arrays, ml_dtypes' among them, are the common form."""

import ml_dtypes
import numpy as np
import pytest

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(np.float32), np.dtype(np.float16), BFLOAT16]


def bits(array):
    """The array as unsigned integers, so that -0, +0 and NaNs compare by what they are."""
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


class NumPy:
    name = "numpy"

    def make(self, array):
        return array

    def to_numpy(self, array):
        assert type(array) is np.ndarray
        return array


class Torch:
    name = "torch"

    def __init__(self):
        self.torch = pytest.importorskip("torch", reason="PyTorch is not installed")

    def make(self, array):
        """Shares memory, strides included, where PyTorch has such strides."""
        if array.dtype == BFLOAT16:
            return self.torch.from_numpy(array.view(np.int16)).view(self.torch.bfloat16)
        return self.torch.from_numpy(array)

    def to_numpy(self, array):
        assert type(array) is self.torch.Tensor and array.device.type == "cpu"
        if array.dtype == self.torch.bfloat16:
            return array.view(self.torch.int16).numpy().view(BFLOAT16)
        return array.numpy()


class Jax:
    name = "jax"

    def __init__(self):
        self.jax = pytest.importorskip("jax", reason="JAX is not installed")

    def make(self, array):
        return self.jax.numpy.asarray(array)

    def to_numpy(self, array):
        assert isinstance(array, self.jax.Array)
        return np.asarray(array)


class Exporter:
    """An array of a framework that riffle does not know: DLPack and nothing else."""

    def __init__(self, tensor):
        self._tensor = tensor

    def __dlpack__(self, **arguments):
        return self._tensor.__dlpack__(**arguments)

    def __dlpack_device__(self):
        return self._tensor.__dlpack_device__()


class DLPack(Torch):
    """Other DLPack producers, for which results are NumPy's."""

    name = "dlpack"

    def make(self, array):
        return Exporter(super().make(array))

    def to_numpy(self, array):
        assert type(array) is np.ndarray
        return array


FRAMEWORKS = [pytest.param(f, id=f.name) for f in (NumPy, Torch, Jax, DLPack)]
