"""A Kubernetes cluster: checked, prepared, deployed to, replayed on, collected from, cleaned."""
