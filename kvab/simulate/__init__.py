"""NVIDIA's simulator with Dynamo's own router, in this process; nothing here is measured."""

from kvab.simulate.cluster import Simulator
from kvab.simulate.predictions import prediction, sent_ms

__all__ = ["Simulator", "prediction", "sent_ms"]
