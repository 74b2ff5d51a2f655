# shellcheck shell=bash
# Gives access to Debian's archive through this machine's own apt configuration (mirror, proxy and keys included), without a change of
# the system's apt state. Needs no root. To be sourced after lib.sh.

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

# private_apt FOLDER KIND SUITE: sets the array `apt` to an apt-get with lists and a cache of its own in FOLDER, which knows one source
# of that kind (deb or deb-src) and suite. False: this machine has no Debian archive among its sources.
private_apt() {
  local folder=$1 source uri key
  source=$(debian_source)
  [ -n "$source" ] || return 1
  uri=${source%%$'\t'*} key=${source#*$'\t'}
  [ "$key" != - ] || key=/usr/share/keyrings/debian-archive-keyring.gpg
  mkdir -p "$folder/lists/partial" "$folder/cache/archives/partial"
  echo "$2 [signed-by=$key] $uri $3 main" >"$folder/sources.list"
  apt=(apt-get -q -o "Dir::Etc::sourcelist=$folder/sources.list" -o Dir::Etc::sourceparts=/dev/null
    -o "Dir::State::lists=$folder/lists" -o "Dir::Cache=$folder/cache" -o Acquire::Retries=3)
  # apt would hand the download to the user _apt, who may not look into our directory.
  [ "$(id -u)" != 0 ] || apt+=(-o APT::Sandbox::User=root)
}
