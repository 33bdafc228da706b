"""The study of disaggregated, KV-aware routing: its cluster, metric and page helpers."""

__version__ = "0.1.0"
