"""Measuring: load on a node, the samples it leaves, the run they make, and what the run shows."""
