"""riffle.torch.distributed in two and three processes; the checks themselves are in distributed_selection.py and distributed_attention.py."""

import ast
import json
import os
import pathlib
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

FOLDER = pathlib.Path(__file__).parent
PROGRAM = FOLDER / "distributed_program.py"
CHECKS = [node.name for name in ("distributed_selection.py", "distributed_attention.py") for node in ast.parse((FOLDER / name).read_text()).body
          if isinstance(node, ast.FunctionDef) and any(getattr(x, "id", "") == "check" for x in node.decorator_list)]  # fmt: skip


def environment(**variables):
    return {**os.environ, "OMP_NUM_THREADS": "1", "RIFFLE_NUM_THREADS": "1", **variables,
            "PYTHONPATH": os.pathsep.join(filter(None, (str(FOLDER), os.environ.get("PYTHONPATH"))))}  # fmt: skip


def on_one_host(ranks, folder):
    command = [sys.executable, "-P", PROGRAM, "all", str(ranks), f"file://{folder / 'meeting'}"]
    done = subprocess.run(command, env=environment(GLOO_SOCKET_IFNAME="lo"), text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def on_two_hosts():
    """In two network namespaces, where scripts/two_hosts.sh can make them."""
    commands = [[sys.executable, "-P", str(PROGRAM), str(rank), "2", "tcp://10.77.0.1:29577"] for rank in (0, 1)]
    script = FOLDER.parents[1] / "scripts" / "two_hosts.sh"
    done = subprocess.run([script, *commands[0], "--", *commands[1]], env=environment(), text=True, capture_output=True, timeout=300)
    if done.returncode == 77:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module", params=["2 ranks", "3 ranks", "two_hosts"])
def reports(request, tmp_path_factory):
    """The reports of all ranks, each of which runs in a process of its own."""
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this PyTorch has no gloo")
    if request.param == "two_hosts":
        if os.environ.get("RIFFLE_TEST_TWO_HOSTS") != "1":
            pytest.skip("make test-two-hosts runs it")
        out = on_two_hosts()
    else:
        out = on_one_host(int(request.param[0]), tmp_path_factory.mktemp("ranks"))
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert len(lines) == (2 if request.param == "two_hosts" else int(request.param[0])), out
    return lines


@pytest.mark.parametrize("name", CHECKS)
def test_rank(reports, name):
    for report in reports:
        assert report["failures"].get(name, "not reached") == "", f"rank {report['rank']}"


def test_all_ranks_have_the_same_results(reports):
    assert len({report["digest"] for report in reports}) == 1


def test_without_a_group():
    import riffle.torch.distributed

    with pytest.raises(RuntimeError, match="there is no process group: call torch.distributed.init_process_group first"):
        riffle.torch.distributed.topk(torch.zeros(3), 1)
