"""One process each for GKD and its peers: the same workloads through each one's own code."""
