"""Which annotations look wrong: tracked in training, ranked, shown, decided on, corrected.

``tracker`` adds up what training says about each annotation, ``ranking`` makes a list of it,
``files`` and ``report`` show it, ``decisions`` and ``correct`` turn what a person confirms into a
data set.
"""

from .correct import apply_decisions
from .decisions import Decision, Decisions, decisions_above, read_decisions, write_decisions
from .files import AUDIT_CSV, AUDIT_JSON, read_audit, write_audit
from .ranking import audit_annotations
from .records import AuditedAnnotation, LabelAudit, top_suspects
from .report import write_report
from .tracker import AnnotationStatistics, AnnotationTracker

__all__ = [
    "AnnotationTracker",
    "AnnotationStatistics",
    "audit_annotations",
    "top_suspects",
    "LabelAudit",
    "AuditedAnnotation",
    "write_audit",
    "read_audit",
    "AUDIT_JSON",
    "AUDIT_CSV",
    "write_report",
    "Decision",
    "Decisions",
    "decisions_above",
    "read_decisions",
    "write_decisions",
    "apply_decisions",
]
