"""Small studies of attention: each trains or computes in a minute or two, and holds its figures against bounds."""

from mien.study.findings import Bound, Findings, study

__all__ = ["STUDIES", "Bound", "Findings", "study"]

STUDIES = {
    "icl": "how one layer of softmax attention learns to regress within its context",
    "rfa": "what attention with random weights can learn, when only its values are trained",
    "memory": "how much a linear attention remembers, and what becomes of it over depth",
}
"""What `mien study` can be asked, and what each looks into."""
