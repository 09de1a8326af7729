"""Experiments and settings: reading, checking, schema."""
