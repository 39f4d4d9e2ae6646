"""The reader behind HTTP: a FastAPI front, a queue, worker processes, and limits on all that strangers may send."""

from mien.service.keys import Keys
from mien.service.limits import Limits, Refused
from mien.service.run import serve

__all__ = ["Keys", "Limits", "Refused", "serve"]
