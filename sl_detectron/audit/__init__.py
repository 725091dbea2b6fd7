"""Which annotations look wrong: tracked in training, ranked, shown, decided on, corrected.

``tracker`` adds up what training says about each annotation, ``run`` and ``ranking`` make a list of
it, ``files`` and ``report`` show it, ``decisions`` and ``correct`` turn what a person confirms into
a dataset.
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
