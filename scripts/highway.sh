#!/usr/bin/env bash
# Puts the source of Google Highway 1.2.0 in .deps/highway.
#
# Debian 12 packages Highway 1.0.3, which lacks the Zen 4 target and native bf16 dot products; Debian 13 has 1.2.0. Its
# source package is fetched through this machine's own apt configuration (mirror, proxy and keys included) and nothing
# of the system's apt state changes. Needs neither root nor the network once the tarball is in the cache.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

version=1.2.0
suite=trixie
tarball=highway_$version.orig.tar.gz
sha256=7e0be78b8318e8bdbf6fa545d2ecb4c90f947df03f7aadc42c1967f019e63343
kept=$CACHE/$tarball
dest=$ROOT/.deps/highway

give_up() {
  warn "$*"
  warn "without .deps/highway, CMake uses an installed hwy of 1.2 or newer (libhwy-dev), else downloads Highway by FetchContent"
  exit 1
}

intact() { echo "$sha256  $1" | sha256sum --check --status 2>/dev/null; }

# Prints "URI<tab>keyring or -" of the first apt source that serves main of a Debian release: one-line files or deb822.
debian_source() {
  local codename file
  codename=$(. /etc/os-release && [ "$ID" = debian ] && echo "${VERSION_CODENAME:-}") || true
  for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
    [ -r "$file" ] || continue
    awk -v codename="$codename" -v one_line="${file%.list}" -v file="$file" '
      # Exact names, so that neither security archives nor other vendors match.
      function wanted(suites, components,    n, i, s, ok) {
        n = split(suites, s, " ")
        for (i = 1; i <= n; i++)
          if (s[i] == codename || s[i] ~ /^(bookworm|trixie|stable|testing|unstable|sid)$/) ok = 1
        return ok && (" " components " ") ~ / main /
      }
      function show(uri, key) { found = 1; print uri "\t" (key ~ /^\// ? key : "-"); exit }
      function stanza(    u) {
        if (field["types"] != "" && tolower(field["enabled"]) != "no" && wanted(field["suites"], field["components"])) {
          split(field["uris"], u, " ")
          show(u[1], field["signed-by"])
        }
        delete field
        last = ""
      }
      one_line != file {
        if ($1 != "deb" && $1 != "deb-src") next
        key = ""
        if (match($0, /\[[^]]*\]/)) {
          options = substr($0, RSTART + 1, RLENGTH - 2)
          $0 = substr($0, 1, RSTART - 1) substr($0, RSTART + RLENGTH)
          if (match(options, /signed-by=[^ ]*/)) key = substr(options, RSTART + 10, RLENGTH - 10)
        }
        components = ""
        for (i = 4; i <= NF; i++) components = components " " $i
        if (wanted($3, components)) show($2, key)
        next
      }
      /^#/ { next }
      /^[ \t]*$/ { stanza(); next }
      /^[ \t]/ { if (last != "") { sub(/^[ \t]+/, ""); field[last] = field[last] " " $0 }; next }
      { last = tolower(substr($0, 1, index($0, ":") - 1)); v = substr($0, index($0, ":") + 1); sub(/^[ \t]+/, "", v)
        field[last] = v }
      END { if (!found && one_line == file) stanza() }
    ' "$file"
  done | head -n 1
}

fetch() {
  have apt-get || give_up "no apt-get here"
  local source uri key
  source=$(debian_source)
  [ -n "$source" ] || give_up "no Debian archive among this machine's apt sources"
  uri=${source%%$'\t'*} key=${source#*$'\t'}
  [ "$key" != - ] || key=/usr/share/keyrings/debian-archive-keyring.gpg

  # A private apt: its own source line, lists and cache.
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/get"
  echo "deb-src [signed-by=$key] $uri $suite main" >"$work/sources.list"
  local apt=(apt-get -q -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=/dev/null
    -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache" -o Acquire::Retries=3)
  # apt would hand the download to the user _apt, who may not look into our directory.
  [ "$(id -u)" != 0 ] || apt+=(-o APT::Sandbox::User=root)

  say "fetching the source package highway $version ($suite) through apt"
  (cd "$work/get" && "${apt[@]}" update && "${apt[@]}" source --download-only highway) >"$work/log" 2>&1 || {
    tail -n 15 "$work/log" >&2
    give_up "apt could not bring the source package"
  }
  [ -f "$work/get/$tarball" ] || give_up "$suite no longer holds $tarball, but another version"
  intact "$work/get/$tarball" || give_up "$tarball does not have the SHA-256 $sha256"
  mkdir -p "$CACHE"
  # Copy, then rename: a second run at the same time never sees half a file.
  cp "$work/get/$tarball" "$kept.$$" && mv "$kept.$$" "$kept"
}

lock .deps/highway
if [ "$(cat "$dest/.riffle-source" 2>/dev/null)" = "$sha256" ]; then
  say "Highway $version is in .deps/highway"
  exit 0
fi
intact "$kept" || fetch

say "unpacking Highway $version into .deps/highway"
mkdir -p "$ROOT/.deps"
fresh=$(mktemp -d "$ROOT/.deps/highway.XXXXXX")
tar -xzf "$kept" -C "$fresh" --strip-components=1 --no-same-owner
[ -f "$fresh/CMakeLists.txt" ] || die "unexpected layout inside $kept"
chmod 755 "$fresh"
echo "$sha256" >"$fresh/.riffle-source"
rm -rf "$dest"
mv "$fresh" "$dest"
