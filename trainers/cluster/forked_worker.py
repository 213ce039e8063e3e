"""What Ray starts in place of Python for a worker: `forked_worker.py SOCKET PYTHON SCRIPT ARGUMENT …`.

It has trainers/cluster/fork_server.py fork the worker, stays as long as the worker does and ends as it ended. Where no server
takes the request it becomes the worker itself, as Ray would have started it.
"""

import json
import os
import resource
import socket
import sys


def main() -> None:
    address, python, *arguments = sys.argv[1:]
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    request = {
        "argv": arguments,
        "env": dict(os.environ),
        "cwd": os.getcwd(),
        "priority": os.getpriority(os.PRIO_PROCESS, 0),
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE),
    }
    try:
        connection.connect(address)
        socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
        forked = connection.recv(64)
    except OSError:
        forked = b""
    if not forked:
        os.execv(python, [python, *arguments])
    status = int(connection.recv(64) or b"1")
    sys.exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main()
