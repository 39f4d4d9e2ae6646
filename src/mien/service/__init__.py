"""The reader behind HTTP: worker processes behind a queue, a FastAPI front, and limits on all that strangers may send."""

from mien.service.keys import Keys
from mien.service.limits import Limits, Refused
from mien.service.run import serve

__all__ = ["Keys", "Limits", "Refused", "serve"]
