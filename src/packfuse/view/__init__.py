"""Answers, packs and results to look at: HTML for notebooks and browsers, pictures for papers.

`document.py` makes the view of an answer: one file that loads nothing, from the scripts and styles
in `assets/`, which `packfuse serve` uses for its page as well. `tables.py` makes small tables for
notebooks, `picture.py` figures with matplotlib. This room knows plain JSON types only; it may use
the root modules.
"""
