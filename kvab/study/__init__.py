"""What is declared, and where everything lies."""

from kvab.study.declaration import (
    Arm,
    Gpus,
    Kubernetes,
    Live,
    Profile,
    Simulated,
    Slo,
    Study,
    check_product,
    default_study,
    load_cluster,
    load_study,
    root,
)

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
