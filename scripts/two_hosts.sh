#!/usr/bin/env bash
# Runs two commands, each on a host of its own: network namespaces that a veth pair joins. They share files and processors,
# but not shared memory, message queues or the host's name (host0, host1), and reach each other only over that network.
#
#   scripts/two_hosts.sh COMMAND0... -- COMMAND1...
#
# The hosts are 10.77.0.1 and 10.77.0.2, their interface is called `host`. Both commands get
#   HOST_RANK, HOST_ADDRESS   0 or 1, and the address of this host
#   MASTER_ADDR               10.77.0.1
#   GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME, TP_SOCKET_IFNAME   the interface
# Ends when both have ended, or when one has failed; then the other one and its children are stopped. Status: that of the command that
# failed; 77, with a line that says why, where namespaces are not possible (they need root and iproute2).
set -euo pipefail
. "$(dirname "$0")/lib.sh"

skip() {
  warn "skipped: $*"
  exit 77
}

commands=() # two strings, quoted so that bash splits them into the same words
words=()
for word in "$@"; do
  if [ "$word" = -- ] && [ ${#commands[@]} = 0 ]; then
    commands+=("${words[*]@Q}")
    words=()
  else
    words+=("$word")
  fi
done
if [ ${#commands[@]} = 0 ] || [ -z "${commands[0]}" ] || [ ${#words[@]} = 0 ]; then
  die "usage: two_hosts.sh COMMAND0... -- COMMAND1..."
fi
commands+=("${words[*]@Q}")

[ "$(id -u)" = 0 ] || skip "network namespaces need root"
have unshare || skip "there is no unshare: install util-linux"
have ip || skip "there is no ip: install iproute2 (scripts/setup.sh hosts)"

namespaces=("riffle-$$-0" "riffle-$$-1")
pids=()
clean_up() {
  local pid namespace
  trap '' INT TERM # a second signal (timeout also sends one to the group) would leave the namespaces behind
  for pid in "${pids[@]}"; do
    kill -TERM -- "-$pid" 2>/dev/null || true # the group, in which its children are
  done
  for namespace in "${namespaces[@]}"; do
    [ -e "/run/netns/$namespace" ] || [ -e "/var/run/netns/$namespace" ] || continue
    for pid in $(ip netns pids "$namespace" 2>/dev/null); do # processes that have left the group
      kill -KILL "$pid" 2>/dev/null || true
    done
    ip netns delete "$namespace" || true # and the veth pair with it
  done
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

for namespace in "${namespaces[@]}"; do
  ip netns add "$namespace" 2>/dev/null || skip "this machine does not permit network namespaces"
done
ip -n "${namespaces[0]}" link add host type veth peer name host netns "${namespaces[1]}" 2>/dev/null || skip "this machine has no veth interfaces"
for rank in 0 1; do
  ip -n "${namespaces[rank]}" address add "10.77.0.$((rank + 1))/24" dev host
  ip -n "${namespaces[rank]}" link set lo up
  ip -n "${namespaces[rank]}" link set host up
  ip -n "${namespaces[rank]}" route add default dev host # for programs that look up their address by the default route
done

set -m # each command in a process group of its own
for rank in 0 1; do
  HOST_RANK=$rank HOST_ADDRESS=10.77.0.$((rank + 1)) MASTER_ADDR=10.77.0.1 \
    GLOO_SOCKET_IFNAME=host NCCL_SOCKET_IFNAME=host TP_SOCKET_IFNAME=host \
    ip netns exec "${namespaces[rank]}" unshare --ipc --uts --mount \
    bash -c "mount -t tmpfs tmpfs /dev/shm && hostname host$rank && exec ${commands[rank]}" &
  pids+=($!)
done
set +m

for _ in 0 1; do
  status=0
  wait -n || status=$?
  [ "$status" = 0 ] || exit "$status"
done
