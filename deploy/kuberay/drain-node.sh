#!/bin/sh
# preStop of a worker pod: tells Ray that this node goes, and waits until its raylet has ended, at most SECONDS.
# Training writes a checkpoint at the notice and goes on; Serve moves its replicas; a node without work ends at once.
# RAY_ADDRESS and the token are in the pod's environment.
seconds=${1:?SECONDS, fewer than terminationGracePeriodSeconds}
# Where the head is gone Ray looks for it for 40 s and does not hear SIGTERM; then there is nothing to wait for.
timeout -s KILL 15 ray drain-node --reason=DRAIN_NODE_REASON_PREEMPTION --reason-message="the pod ends" \
  --deadline-remaining-seconds="$seconds" || exit 0
while [ "$seconds" -gt 0 ] && grep -qsx raylet /proc/[0-9]*/comm; do
  sleep 1
  seconds=$((seconds - 1))
done
