"""Where a configuration is replayed: a simulation, this machine, or Kubernetes."""

from kvab.clusters.base import Cluster
from kvab.study import Live, Profile, Simulated


def open_cluster(profile: Profile) -> Cluster:
    """Return the cluster that a profile describes; only the packages of its kind are loaded."""
    if isinstance(profile, Simulated):
        from kvab.clusters.simulated import SimulatedCluster

        return SimulatedCluster(profile)
    if isinstance(profile, Live):
        from kvab.clusters.live import LiveCluster

        return LiveCluster(profile)
    from kvab.clusters.kubernetes import KubernetesCluster

    return KubernetesCluster(profile)
