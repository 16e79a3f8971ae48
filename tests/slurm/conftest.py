"""The cluster that these tests share."""

from slurm_cluster import cluster

__all__ = ["cluster"]
