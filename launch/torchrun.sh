#!/bin/bash
# One run on several hosts over ssh. Each host needs this directory, the code and the interpreter at the same path:
#   launch/torchrun.sh "node1 node2" task=bert batch.global_size=256
# RANKS: ranks on each host (default: its GPUs). ENDPOINT: address:port of the first host. INTERFACE: network interface
# between the hosts. PYTHON: interpreter on the hosts. SSH: command that runs a command on a host.
set -euo pipefail
read -ra hosts <<<"$1"
shift
torchrun=(
  "${PYTHON:-python}" -m torch.distributed.run
  --nnodes="${#hosts[@]}" --nproc-per-node="${RANKS:-gpu}" --rdzv-id="$$"
  --rdzv-backend=trainer --rdzv-endpoint="${ENDPOINT:-${hosts[0]}:29400}" ${INTERFACE:+--rdzv-conf=interface=$INTERFACE}
)
# For the shell of the other host, whichever it is: %q of bash's printf writes what only bash reads.
quoted() {
  local quote="'\\''"
  printf " '%s'" "${@//\'/$quote}"
}
trap 'kill $(jobs -p) 2>/dev/null' INT TERM
for host in "${hosts[@]}"; do
  ${SSH:-ssh -tt} "$host" "cd$(quoted "$PWD") && exec$(quoted "${torchrun[@]}" -m trainer "$@")" &
done
code=0
for job in $(jobs -p); do wait "$job" || code=$?; done
exit $code
