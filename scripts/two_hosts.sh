#!/usr/bin/env bash
# Runs a command on two hosts at once, which are network namespaces of this machine with a cable between them (as root):
#
#   scripts/two_hosts.sh COMMAND...
#
# Each host has its own addresses, name, shared memory and message queues; files are the same on both. The command finds
# RANK (0 or 1), WORLD_SIZE=2, MASTER_ADDR and MASTER_PORT, as PyTorch's init_process_group wants them, HOST_ADDRESS (its own),
# and GLOO_SOCKET_IFNAME. Lines of host 1 begin with "host 1: ". When host 0's command ends, host 1's has 20 s to end too,
# and is ended then. Exits with the status of the first that failed; with 77, and the reason, where network namespaces
# cannot be made. Nothing is left behind.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

[ $# -gt 0 ] || die "usage: two_hosts.sh COMMAND..."
cannot() {
  warn "$*"
  exit 77
}
[ "$(id -u)" = 0 ] || cannot "needs root, to make network namespaces"
have ip || cannot "needs the command ip: apt-get install iproute2"
have unshare || cannot "needs the command unshare: apt-get install util-linux"

names=("riffle-$$-0" "riffle-$$-1")
pids=()
# shellcheck disable=SC2317  # the trap calls it
cleanup() {
  local name
  for name in "${names[@]}"; do
    # Whatever the command has left running there.
    ip netns pids "$name" 2>/dev/null | xargs -r kill -KILL 2>/dev/null || true
    ip netns del "$name" 2>/dev/null || true
  done
  wait 2>/dev/null || true
}
trap cleanup EXIT
trap 'exit 130' INT TERM

complaint=$(
  {
    ip netns add "${names[0]}" && ip netns add "${names[1]}" &&
      ip -n "${names[0]}" link add veth type veth peer name veth netns "${names[1]}"
  } 2>&1
) || cannot "network namespaces cannot be made here: $complaint"
for rank in 0 1; do
  ip -n "${names[rank]}" link set lo up
  ip -n "${names[rank]}" addr add "10.77.0.$((rank + 1))/24" dev veth
  ip -n "${names[rank]}" link set veth up
  ip -n "${names[rank]}" route add default dev veth
done

# The command on a host: what shares memory or asks for the host's name sees two hosts.
on_host() {
  local rank=$1
  shift
  # shellcheck disable=SC2016  # the inner shell's variables
  ip netns exec "${names[rank]}" env RANK="$rank" WORLD_SIZE=2 MASTER_ADDR=10.77.0.1 MASTER_PORT="${MASTER_PORT:-29500}" \
    HOST_ADDRESS="10.77.0.$((rank + 1))" GLOO_SOCKET_IFNAME=veth TP_SOCKET_IFNAME=veth \
    unshare --ipc --uts --mount sh -c 'mount -t tmpfs tmpfs /dev/shm && hostname "host$RANK" && exec "$@"' sh "$@"
}

on_host 1 "$@" > >(sed -u 's/^/host 1: /') 2>&1 &
pids[1]=$!
on_host 0 "$@" &
pids[0]=$!

# The one that ends first. `wait -n` tells its status; which one it was is seen by what still runs.
status=0
wait -n "${pids[@]}" || status=$?
if kill -0 "${pids[0]}" 2>/dev/null; then
  # Host 1 has ended: well, or it has failed and host 0 would wait for it for ever.
  [ "$status" = 0 ] || exit "$status"
  wait "${pids[0]}" || status=$?
  exit "$status"
fi
for _ in $(seq 40); do
  if ! kill -0 "${pids[1]}" 2>/dev/null; then
    [ "$status" != 0 ] || wait "${pids[1]}" || status=$?
    break
  fi
  sleep 0.5
done
exit "$status"
