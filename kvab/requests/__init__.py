"""Requests: the table of them, what it is read from, and the metrics of it."""
