"""`python -m packfuse` is the command line."""

from __future__ import annotations

from packfuse.cli import main

main()
