"""The kinds of cluster: simulated, live, kubernetes."""
