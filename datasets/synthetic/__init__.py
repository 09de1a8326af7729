"""Datasets that are generated from a seed, without files; each file here is a kind."""
