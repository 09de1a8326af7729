"""Reading raw files: finding them, reading tables of several formats, and errors raised in Ray's tasks."""
