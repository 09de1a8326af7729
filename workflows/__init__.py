"""Experiments, training on Ray, tracking, and the commands."""
