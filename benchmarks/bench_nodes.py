"""Kills a node under an elastic pretraining, brings another one, and looks at the loss curve.

make bench-nodes            a cluster of three raylets on this machine, ended by their own handles
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from ray.cluster_utils import Cluster

from benchmarks.bench_resume import STEPS, command, losses, make_shards
from benchmarks.report import Figure, show, table

WORDS = (
    "--num_workers 2 --min_workers 1 --cpus_per_worker 1 --micro_batch 4 --loader.processes 0"
).split()
FIRST, SECOND = 10, 24  # steps at which a node goes and another comes
TOLERANCE = 1e-3  # relative; the same clips in the same parts, added up in another order


def train(words: list[str], cluster: Cluster, *, disturbed: bool) -> list[int]:
    """Runs a training on the cluster; returns with how many workers it went on, in order."""
    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    driver = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
    assert driver.stdout is not None
    workers = []
    for line in driver.stdout:
        print(line, end="", flush=True)
        if found := re.match(r"batch .* x (\d+) workers", line):
            workers.append(int(found[1]))
        told = re.match(r"step +(\d+)/", line)
        step = int(told[1]) if told else 0
        if disturbed and step >= FIRST and len(cluster.worker_nodes) == 2 and len(workers) == 1:
            cluster.remove_node(node, allow_graceful=False)
        if disturbed and step >= SECOND and len(cluster.worker_nodes) == 1 and len(workers) == 2:
            node = cluster.add_node(num_cpus=1)
    if driver.wait() != 0:
        raise RuntimeError(f"the training ended with status {driver.returncode}")
    if node in cluster.worker_nodes:
        cluster.remove_node(node)
    return workers


def main() -> None:
    """Prints the table and the figure."""
    with tempfile.TemporaryDirectory(prefix="bench-nodes-") as name:
        folder = Path(name)
        shards = make_shards(folder)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        try:
            cluster.add_node(num_cpus=1)
            words = {runs: [*command(shards, folder / runs), *WORDS] for runs in ("whole", "node")}
            train(words["whole"], cluster, disturbed=False)
            workers = train(words["node"], cluster, disturbed=True)
        finally:
            cluster.shutdown()
        whole, broken = losses(folder / "whole"), losses(folder / "node")
    equal = [step for step in whole if np.isclose(whole[step], broken.get(step, -1), TOLERANCE)]
    made = table(f"A node lost and one gained in {STEPS} steps", "workers in turn", "equal losses")
    made.add_row(", ".join(map(str, workers)), f"{len(equal)} of {len(whole)}")
    show([made], [Figure("node_loss_equal_losses", len(equal) / len(whole), 1.0)])


if __name__ == "__main__":
    main()
