"""`packfuse serve`: packs behind OpenAI's HTTP API, with metrics and a page to chat.

`packfuse.cli` imports `Served` and `run`; applications of others may mount `create_app`. This room
may use `tools`, `pack`, `scheduler` and the rooms below them. It needs `packfuse[serve]`.
"""
