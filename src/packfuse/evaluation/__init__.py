"""Is the pack better than its best member, and which models belong together?"""

from packfuse.evaluation.journal import Journal
from packfuse.evaluation.report import Evaluation
from packfuse.evaluation.run import evaluate, read_questions, task_for
from packfuse.evaluation.setting import Setting, every_method, grid

__all__ = [
    "Evaluation",
    "Journal",
    "Setting",
    "evaluate",
    "every_method",
    "grid",
    "read_questions",
    "task_for",
]
