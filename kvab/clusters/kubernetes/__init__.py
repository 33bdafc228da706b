"""A Kubernetes cluster: checked, prepared, deployed to, replayed on, collected from, cleaned.

Whoever asks only what a run depends on does without the client's packages.
"""

from __future__ import annotations

from collections.abc import Iterator

from kvab.clusters.base import Cluster, ClusterRun, Finding, Job
from kvab.study import Kubernetes, Study


class KubernetesCluster(Cluster):
    """The cluster of a profile."""

    def __init__(self, profile: Kubernetes) -> None:
        self.profile = profile

    def identity(self) -> dict[str, object]:
        """Return what a result depends on beside the manifests and the trace."""
        selector = sorted(self.profile.node_selector.items())
        return {
            "image": self.profile.image or "as in deploy.yaml",
            "nodes": ",".join(f"{key}={value}" for key, value in selector),
            "rdma": self.profile.rdma_resource or "",
        }

    def check(self, study: Study) -> Iterator[Finding]:
        """Yield what the cluster has and lacks for the configurations of a study."""
        from kvab.clusters.kubernetes import preflight

        return preflight.study_findings(study, self.profile)

    def start(self, job: Job, *, take_over: bool = False) -> ClusterRun:
        """Return the run of a job, which may be under way on the cluster already."""
        from kvab.clusters.kubernetes.run import KubernetesRun

        return KubernetesRun(self.profile, job, take_over=take_over)
