"""Searches and comparisons. Only this package uses Ray Tune."""
