"""Find wrong labels: collect statistics in training, rank, review and correct annotations.

``tracker`` sums up statistics of each annotation during training. ``run`` and ``ranking`` turn them
into a ranked list, ``files`` and ``report`` write it, and ``decisions`` and ``correct`` apply what
a person confirms to the dataset.
"""

from .correct import apply_decisions
from .decisions import decisions_above, read_decisions
from .files import read_audit
from .records import LabelAudit
from .report import write_report
from .run import audit_checkpoint, audit_run

__all__ = [
    "audit_run",
    "audit_checkpoint",
    "LabelAudit",
    "read_audit",
    "write_report",
    "decisions_above",
    "read_decisions",
    "apply_decisions",
]
