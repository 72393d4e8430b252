"""One module a command of `packfuse`. Nothing but `packfuse.cli` imports from here."""
