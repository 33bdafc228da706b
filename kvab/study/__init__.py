"""What is declared, and where everything lies."""

from kvab.study.declaration import Arm, Gpus, Slo, Study, default_study, load_study, root
from kvab.study.profiles import Kubernetes, Live, Profile, Simulated, check_product, load_cluster

__all__ = [
    "Arm",
    "Gpus",
    "Kubernetes",
    "Live",
    "Profile",
    "Simulated",
    "Slo",
    "Study",
    "check_product",
    "default_study",
    "load_cluster",
    "load_study",
    "root",
]
