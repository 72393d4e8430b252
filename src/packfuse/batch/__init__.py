"""Offline batches: a file of requests, one a line, and a file of their answers.

`packfuse.cli` and `packfuse.ray` use `run_batch` and `Worker`. This room may use `server`, whose
requests and responses these are, and the rooms below it. It needs `packfuse[serve]`.
"""
