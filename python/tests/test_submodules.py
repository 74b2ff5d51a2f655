"""riffle.torch, riffle.jax and riffle.transformers: imported at their first use, or saying what to install."""

import importlib.util
import subprocess
import sys

import pytest
import riffle

PROGRAM = """
import sys, riffle
class Missing:  # as if these were not installed
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
for _ in range(2):
    try:
        riffle.{name}
    except ImportError as error:
        print(error)
    else:
        print(riffle.{name}.__name__)
"""


def run(name, missing):
    program = PROGRAM.format(name=name, missing=missing)
    return subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize(
    "name,missing,remedy",
    [
        ("torch", ["torch"], "riffle.torch needs PyTorch: pip install torch"),
        ("jax", ["jax"], "riffle.jax needs JAX: pip install jax"),
        ("transformers", ["transformers"], "riffle.transformers needs PyTorch and Transformers 5: pip install torch"),
        ("transformers", ["torch"], "riffle.transformers needs PyTorch and Transformers 5: pip install torch"),
    ],
)
def test_says_what_to_install(name, missing, remedy):
    lines = run(name, missing)
    assert len(lines) == 2 and all(line.startswith(remedy) for line in lines), lines


@pytest.mark.parametrize("name", ["torch", "jax", "transformers"])
def test_imported_at_first_use(name):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    assert run(name, []) == [f"riffle.{name}"] * 2


def test_other_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'riffle' has no attribute 'tensorflow'"):
        _ = riffle.tensorflow
