"""The workload: read, found, cut, generated, described."""
