# shellcheck shell=bash
# The Pythons of this machine that can build or run riffle. To be sourced after lib.sh.

# Pythons in PATH and pyenv's, "MINOR path" a line, each minor version once.
pythons() {
  local candidate
  for candidate in /usr/bin/python3 python3.{10..20} "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.*/bin/python; do
    if ! have "$candidate"; then continue; fi
    # venv and headers too, without which nothing is built; the second may be a package of its own.
    "$candidate" -c 'if True:
      import ensurepip, os, sys, sysconfig, venv
      header = os.path.join(sysconfig.get_path("include"), "Python.h")
      if sys.version_info >= (3, 10) and sys.implementation.name == "cpython" and os.path.exists(header):
        print(sys.version_info.minor, sys.executable)' 2>/dev/null || true
  done | sort -n -u -k 1,1
}
