"""The graph of `quantize` on workers whose tasks only sleep, beside the plan of the same graph in virtual time.

    python bench/simulate.py [MODEL] [--to q4_k_m] [--workers 16] [--seconds 20]

Nothing is read but the shape of the model: tasks sleep as long as the plan says, times a scale that makes the whole
run take about `--seconds`. Workers are threads with the loop of real workers, and a store in a folder.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path

from bitsmith.pipeline.spread_plan import planned_graph
from bitsmith.scale.results import GRAPH
from bitsmith.scale.simulation import simulate, sleeping
from bitsmith.scale.store import FolderStore
from bitsmith.scale.worker import work


def main() -> None:
    """Print both times."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="llama-3-70b")
    parser.add_argument("--to", default="q4_k_m")
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    graph, needs, cluster = planned_graph(
        arguments.model, to=arguments.to, workers=arguments.workers, threads=arguments.threads
    )
    planned = simulate(graph, needs, cluster)
    scale = arguments.seconds / planned.working
    asleep = sleeping(graph, needs, cluster, scale)
    with tempfile.TemporaryDirectory() as folder:
        FolderStore(Path(folder)).write(GRAPH, asleep.to_dict(), {})
        start = time.monotonic()
        threads = [
            threading.Thread(target=work, args=(folder,), kwargs={"member": number, "of": arguments.workers})
            for number in range(arguments.workers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        slept = time.monotonic() - start
    print(
        f"{arguments.model}, {len(graph.tasks):,} tasks, {arguments.workers} workers: planned {planned.working:.0f} s; "
        f"scaled by {scale:.2g}: planned {planned.working * scale:.1f} s, slept {slept:.1f} s"
    )


if __name__ == "__main__":
    main()
