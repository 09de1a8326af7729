"""From a dataset to batches: prepare, prepared data and its storage, views, the plan, and ingest through Ray Data."""
