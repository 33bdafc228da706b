"""Paired statistics: resampling, intervals, effects and what they hang on."""
