"""Run folders: planned, replayed, resumed, read from anywhere."""
