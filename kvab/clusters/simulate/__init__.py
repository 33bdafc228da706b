"""NVIDIA's simulator with Dynamo's own router, in this process; nothing here is measured."""

from kvab.clusters.simulate.cluster import Simulator
from kvab.clusters.simulate.predictions import prediction, sent_ms

__all__ = ["Simulator", "prediction", "sent_ms"]
