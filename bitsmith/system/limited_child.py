"""The other end of `bitsmith.system.limited`: a program that answers requests under limits it cannot lift.

It is started as a file by a Python without site packages, and imports nothing of bitsmith. The first argument is JSON:
"task" (a file with a function `answer(request) -> reply`), "paths" (added to sys.path), "memory" (bytes), "seconds".
Requests and replies are JSON objects behind their length in eight bytes, little-endian.
"""

from __future__ import annotations

import json
import os
import resource
import runpy
import sys
import threading
import time
from typing import Any, BinaryIO

_MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024  # unit of ru_maxrss


def main() -> None:
    """Load the task, set the limits, then answer until standard input ends."""
    given = json.loads(sys.argv[1])
    sys.path[:0] = given["paths"]
    sys.dont_write_bytecode = True
    answer = runpy.run_path(given["task"])["answer"]
    _limit(given["memory"])
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    _send(replies, {})  # ready
    while len(head := requests.read(8)) == 8:
        request = json.loads(requests.read(int.from_bytes(head, "little")))
        seconds = request.pop("seconds")
        used = resource.getrusage(resource.RUSAGE_SELF)
        _lower(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime + seconds) + 2)
        try:
            reply = answer(request)
        except (MemoryError, RecursionError) as error:
            reply = {"error": type(error).__name__}
        _send(replies, reply)


def _send(replies: BinaryIO, reply: dict[str, Any]) -> None:
    text = json.dumps(reply).encode()
    replies.write(len(text).to_bytes(8, "little"))
    replies.write(text)
    replies.flush()


def _limit(memory: int) -> None:
    """No more memory than this, no files, no processes, no dumps."""
    if sys.platform == "linux":
        _lower(resource.RLIMIT_AS, memory)
    else:  # other systems do not hold this limit
        threading.Thread(target=_watch, args=(memory,), daemon=True).start()
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, 0)
    _lower(resource.RLIMIT_NOFILE, 0)
    _lower(resource.RLIMIT_NPROC, 0)
    os.environ.clear()


def _lower(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    soft = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (soft, hard if kind == resource.RLIMIT_CPU else soft))


def _watch(memory: int) -> None:
    """End the process once it has taken more memory than allowed. A single long operation can delay this."""
    while resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_BYTES < memory:
        time.sleep(0.02)
    os._exit(137)


if __name__ == "__main__":
    main()
