#!/usr/bin/env bash
# Installs the Debian or Ubuntu packages that Riffle needs and that are missing.
#
#   scripts/setup.sh build    to build the library, the command line tool and the Python package
#   scripts/setup.sh test     that, and what the tests, the benchmarks, the fuzzers and the linters need
#   scripts/setup.sh arm64    to build the library and its tests for 64-bit ARM and run them here, beside what `build` installs
#   scripts/setup.sh arm64-clang   what `arm64` installs, and the clang that knows NEON_BF16
#   scripts/setup.sh docs     to build the API site, beside what `build` installs
#   scripts/setup.sh hosts    to make two hosts of network namespaces (two_hosts.sh), beside what `build` installs
#
# Asks for root (sudo) only when something is missing; says what it installs; does nothing otherwise.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

build_packages=(
  g++ make cmake ninja-build ccache
  libcli11-dev libfmt-dev nlohmann-json3-dev librandom123-dev libutf8proc-dev
  python3 python3-dev python3-venv
  libgtest-dev libgmock-dev libbenchmark-dev # the release preset looks for them
)
# Debian 12's default clang is 14; libclang-rt (below) carries libFuzzer and clang's sanitizers.
test_packages=(
  clang clang-tidy clang-format lld pkg-config qemu-user
)
arm64_packages=(
  g++-aarch64-linux-gnu qemu-user googletest
)
# clang of any release does: it compiles with the headers and libraries of the cross g++.
arm64_clang_packages=(
  "${arm64_packages[@]}" clang-19
)
docs_packages=(
  doxygen
)
hosts_packages=(
  iproute2
)

what=${1:-build}
case $what in
  build) packages=("${build_packages[@]}") ;;
  test) packages=("${build_packages[@]}" "${test_packages[@]}") ;;
  arm64) packages=("${build_packages[@]}" "${arm64_packages[@]}") ;;
  arm64-clang) packages=("${build_packages[@]}" "${arm64_clang_packages[@]}") ;;
  docs) packages=("${build_packages[@]}" "${docs_packages[@]}") ;;
  hosts) packages=("${build_packages[@]}" "${hosts_packages[@]}") ;;
  *) die "usage: setup.sh build|test|arm64|arm64-clang|docs|hosts" ;;
esac

installed() { [ "$(dpkg-query -W -f='${db:Status-Abbrev}' "$1" 2>/dev/null)" = "ii " ]; }

if ! have dpkg-query || ! have apt-get; then
  warn "this machine has no apt; what Riffle needs, by its Debian names: ${packages[*]}"
  exit 0
fi

missing=()
for package in "${packages[@]}"; do
  installed "$package" || missing+=("$package")
done

as_root=()
if [ "$(id -u)" != 0 ]; then as_root=(sudo); fi
# Waits for another apt instead of failing; one broken source of the user's must not stop us, hence the || below.
apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
updated=
install() {
  have "${as_root[0]:-true}" || die "needs root to install: $*"
  say "installing: $*"
  if [ -z "$updated" ]; then
    "${apt[@]}" update || warn "apt-get update complained; going on with the lists there are"
    updated=yes
  fi
  "${apt[@]}" install --no-install-recommends "$@"
}

[ ${#missing[@]} = 0 ] || install "${missing[@]}"

# clang only recommends its run-time libraries, and their package's name carries clang's version.
if [ "$what" = test ]; then
  version=$(clang -dumpversion)
  runtime=libclang-rt-${version%%.*}-dev
  installed "$runtime" || install "$runtime"
fi

[ -n "$updated" ] || say "all packages are installed (${#packages[@]} checked for '$what')"
