"""The workload: read, found, cut, made up, described."""
