#!/bin/sh
# sh run-job.sh JOB-ID COMMAND...   the entry point of a RayJob on the head, whose jobId is JOB-ID.
# KubeRay tries a failed job again (backoffLimit), on a new cluster, whatever its exit code. A refused recipe or manifest (exit code 2)
# would be refused again, so the job stops itself: a stopped job is not tried again.
job=$1
shift
"$@"
code=$?
if [ "$code" -eq 2 ]; then
    echo "run-job.sh: exit code 2: mend what is named above and apply the RayJob again; it is stopped and not tried again" >&2
    ray job stop --address http://127.0.0.1:8265 --no-wait "$job" && sleep "${STOPPED_WITHIN_S:-60}"
fi
exit "$code"
