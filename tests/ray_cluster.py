"""A Ray cluster of several nodes on one machine, in a process of its own; nodes are killed and added by its input.

Run as ``python ray_cluster.py CPUS [CPUS ...]`` with the CPUs of each node. It prints the cluster's address, then one
line for each command: ``kill N`` ends the processes of node N with SIGKILL, ``add CPUS`` starts another node.
"""

from __future__ import annotations

import sys

from ray.cluster_utils import Cluster


def main() -> None:
    head, *others = map(int, sys.argv[1:])
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": head, "include_dashboard": False, "object_store_memory": 200 << 20},
    )
    nodes = [cluster.head_node]
    nodes += [cluster.add_node(num_cpus=cpus, object_store_memory=200 << 20) for cpus in others]
    sys.stdout.write(f"answer {cluster.address}\n")
    sys.stdout.flush()
    for line in sys.stdin:
        command, number = line.split()
        if command == "kill":
            cluster.remove_node(nodes[int(number)], allow_graceful=False)
        else:
            nodes.append(cluster.add_node(num_cpus=int(number), object_store_memory=200 << 20))
        sys.stdout.write("answer done\n")
        sys.stdout.flush()
    cluster.shutdown()


if __name__ == "__main__":
    main()
