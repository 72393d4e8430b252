"""From outcomes to figures: intervals, the report of one evaluation, Markdown and plots.

`packfuse.evaluation` and the command line import `Evaluation` and `summarize` (report), `document`
(markdown) and `draw` (plot) from its modules. This room may use `evaluation.question`, `settings`
and the root modules.
"""
