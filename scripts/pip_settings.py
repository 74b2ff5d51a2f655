"""Prints this machine's pip settings as shell exports for uv, which does not read pip's configuration.

Run by the Python whose pip is meant. So mirrors, certificates and wheel folders are set in one place, by the user.
"""

import ast
import os
import shlex
import subprocess
import sys

# pip's setting -> (uv's variable, what separates several values)
UV_NAMES = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "no-index": ("UV_NO_INDEX", " "),
    "cert": ("SSL_CERT_FILE", " "),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "proxy": ("ALL_PROXY", " "),
    "default-timeout": ("UV_HTTP_TIMEOUT", " "),
    "timeout": ("UV_HTTP_TIMEOUT", " "),
}
# Later sections win, as in `pip install`.
SECTIONS = ["global", "install", ":env:"]


def main() -> None:
    command = [sys.executable, "-m", "pip", "config", "list"]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {}
    for line in listing.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        if section in SECTIONS and name in UV_NAMES:
            found[SECTIONS.index(section), name] = ast.literal_eval(value)
    exports = {}
    for (_, name), value in sorted(found.items()):
        variable, separator = UV_NAMES[name]
        values = value.split()
        if name == "no-index" and value.lower() not in ("1", "true", "yes", "on"):
            continue
        if name == "find-links":  # pip passes over folders that do not exist; uv stops
            values = [v for v in values if "://" in v or os.path.exists(v)]
        exports[variable] = separator.join(values)
    if "UV_INDEX" in exports:
        # pip takes the best version over all its indexes; uv would stop at the first that has the package.
        exports["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    for variable, value in exports.items():
        if value and variable not in os.environ:  # what the user set for uv itself stays
            print(f"export {variable}={shlex.quote(value)}")


if __name__ == "__main__":
    main()
