"""kvab: does disaggregated, KV-aware routing pay off, and how do you know?"""
