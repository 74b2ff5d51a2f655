"""What each rank of test_torch_distributed.py runs: every check of distributed_selection.py and distributed_attention.py, each
against the call on the whole tensor in the same process.

Arguments: rank, number of ranks, and where they meet, a URL as torch.distributed has it. Rank "all" forks a process for each: the
modules are imported once. Each rank prints a line of JSON: for each check the text of its failure, or none, and a digest of all
results of sharded calls, which is to be the same on every rank.
"""

import datetime
import json
import os
import sys
import traceback

import distributed_attention  # noqa: F401
import distributed_selection  # noqa: F401
import torch
import torch.distributed as dist
from distributed_case import CHECKS, digest, world


def report(failures):
    # Written by one call: the ranks may share a pipe.
    sys.stdout.write(json.dumps({"rank": world.rank, "failures": failures, "digest": digest.hexdigest()}) + "\n")
    sys.stdout.flush()


def main():
    dist.init_process_group("gloo", init_method=sys.argv[3], rank=world.rank, world_size=world.ranks, timeout=datetime.timedelta(seconds=300))
    torch.set_num_threads(1)
    failures = {}
    for function in CHECKS:
        try:
            function()
            failures[function.__name__] = ""
        except Exception:
            failures[function.__name__] = traceback.format_exc()
            report(failures)
            os._exit(0)  # the others need not wait for this rank: their calls fail now
    report(failures)
    dist.barrier()
    dist.destroy_process_group()


def on_every_rank():
    """main() in a child process for each rank. Exits with the largest status of theirs, 0 if all succeed."""
    children = []
    for rank in range(world.ranks):
        world.rank, child = rank, os.fork()
        if child == 0:
            main()
            sys.stdout.flush()
            os._exit(0)
        children.append(child)
    sys.exit(max(abs(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])) for child in children))


if __name__ == "__main__":
    world.ranks = int(sys.argv[2])
    if sys.argv[1] == "all":
        on_every_rank()
    else:
        world.rank = int(sys.argv[1])
        main()
