"""Dynamo's own processes and AIPerf on this machine."""
