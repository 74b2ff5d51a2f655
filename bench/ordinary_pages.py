#!/usr/bin/env python3
"""Runs a command without pages of 2 MiB, even if it asks for them: what a program gets that does not ask.

    bench/ordinary_pages.py build/release/riffle bench topk --only rows32
"""

import ctypes
import os
import sys

PR_SET_THP_DISABLE = 41  # from linux/prctl.h; the setting survives exec


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) != 0:
        sys.exit(f"ordinary_pages.py: prctl: {os.strerror(ctypes.get_errno())}")
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
