"""Runs the calls of a pack: many answers at once, one thread that computes.

`packfuse.calls` imports `Scheduler`, the tasks and the streams; other rooms use the calls of a
pack. This room may use `generation` and the rooms below it.
"""
