"""The record of runs: a spool on disk, delivered to MLflow. The only place that imports mlflow."""
