#!/usr/bin/env python3
"""Finds C++ files that use a name of the standard library whose header neither they nor their own headers include.

    scripts/includes_check.py

One standard library's <vector> brings along what another's does not, so such a file compiles here and not elsewhere. The lists below
hold headers that have been forgotten before, and similar ones.
"""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("", "include", "src", "engine", "cli", "testing", "tests", "python", "bench")  # that quoted includes are relative to
CALLS = {
    "algorithm": "min max clamp sort stable_sort nth_element partial_sort reverse rotate unique fill fill_n copy copy_n find find_if "
    "any_of all_of none_of equal count count_if transform generate shuffle max_element min_element lower_bound upper_bound "
    "push_heap pop_heap make_heap is_sorted remove_if partition",
    "numeric": "iota accumulate reduce partial_sum inner_product gcd lcm",
    "cmath": "sqrt exp exp2 log log2 isnan isinf isfinite ldexp frexp fabs floor ceil round nearbyint pow cos sin nextafter signbit "
    "lround erf tanh fma",
    "cstring": "memcpy memset memcmp memmove strlen",
    "cstdlib": "getenv malloc free abort exit strtol strtod",
    "cstdio": "printf fprintf snprintf fopen fputs puts",
    "bit": "countr_zero countl_zero popcount bit_width has_single_bit",
    "utility": "move swap exchange",
}
TYPES = {
    "algorithm": "ranges::sort",
    "array": "array",
    "atomic": "atomic",
    "functional": "function",
    "limits": "numeric_limits",
    "map": "map multimap",
    "memory": "unique_ptr make_unique shared_ptr make_shared",
    "mutex": "mutex lock_guard unique_lock once_flag",
    "numbers": "numbers",
    "optional": "optional nullopt",
    "random": "mt19937 mt19937_64 uniform_int_distribution normal_distribution",
    "set": "set multiset",
    "span": "span",
    "sstream": "ostringstream istringstream stringstream",
    "string": "string to_string",
    "string_view": "string_view",
    "thread": "thread",
    "tuple": "tuple",
    "unordered_map": "unordered_map",
    "utility": "pair",
    "vector": "vector",
}


def pattern(names: str, after: str) -> re.Pattern[str]:
    return re.compile(rf"\bstd::({'|'.join(names.split())}){after}")


USES = [(header, pattern(names, r"\(")) for header, names in CALLS.items()]
USES += [(header, pattern(names, r"\b")) for header, names in TYPES.items()]


@cache
def text(path: Path) -> str:
    return re.sub(r"//.*", "", path.read_text())


def included(path: Path, seen: set[Path]) -> set[str]:
    """The standard headers that `path` includes, by the project's own headers too."""
    if path in seen:
        return set()
    seen.add(path)
    headers = set(re.findall(r"#\s*include <([^>]+)>", text(path)))
    for quoted in re.findall(r'#\s*include "([^"]+)"', text(path)):
        for folder in (path.parent, *(ROOT / name for name in FOLDERS)):
            if (folder / quoted).is_file():
                headers |= included(folder / quoted, seen)
                break
    return headers


def main() -> int:
    listing = subprocess.run(["git", "ls-files", "*.h", "*.cc", "*.cpp"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [ROOT / name for name in listing.stdout.split() if (ROOT / name).is_file()]
    missing = 0
    for path in files:
        headers = included(path, set())
        for header, use in USES:
            found = use.search(text(path))
            if header not in headers and found:
                print(f"{path.relative_to(ROOT)}: uses std::{found[1]} without <{header}>")
                missing += 1
    if not files or missing:
        print(f"includes_check.py: {missing} includes are missing in {len(files)} files")
        return 1
    print(f"includes_check.py: {len(files)} files include what they use")
    return 0


if __name__ == "__main__":
    sys.exit(main())
