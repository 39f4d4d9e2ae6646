"""`mien read --show`: a window with each frame of a video as it is read, its faces drawn in."""

import importlib
import time
from typing import Any

import cv2
import numpy as np

from mien.errors import MienError

_ROOM = 0.9  # of the screen that the window takes at most
_LOOK = 0.02  # seconds between two looks at what the person presses


class ViewWindow:
    """Shows frames until it is closed, or q or Escape is pressed in it: `closed` then is true.

    Raises MienError where there is no display, or no tkinter.
    """

    def __init__(self):
        try:
            self._tk: Any = importlib.import_module("tkinter")
        except ImportError as error:
            reason = "--show needs tkinter, which this Python lacks (Debian: apt-get install python3-tk)"
            raise MienError(reason) from error
        try:
            self._root = self._tk.Tk(className="mien")
        except self._tk.TclError as error:
            raise MienError(f"--show needs a display: {error}") from error
        self._root.title("mien")
        self._root.configure(background="black")
        self._root.protocol("WM_DELETE_WINDOW", self.close)
        for key in ("q", "Q", "<Escape>"):
            self._root.bind(key, lambda _: self.close())
        self._label = self._tk.Label(self._root, background="black", borderwidth=0)
        self._label.pack(expand=True, fill="both")
        self.closed, self._start = False, 0.0

    def begin(self, name: str) -> None:
        """The frames that follow are of this video, and its time begins."""
        self._start = 0.0
        if not self.closed:
            self._root.title(f"mien: {name}")

    def show(self, image: np.ndarray, moment: float | None = None) -> None:
        """A frame (H, W, 3) uint8 RGB. moment: in seconds, not before which it is to be seen; None for at once."""
        if moment is not None:
            self._start = self._start or time.monotonic() - moment
            while not self.closed and (left := self._start + moment - time.monotonic()) > 0:
                time.sleep(min(left, _LOOK))
                self.look()
        if self.closed:
            return
        height, width = image.shape[:2]
        room = self._root.winfo_screenwidth() * _ROOM / width, self._root.winfo_screenheight() * _ROOM / height
        if min(room) < 1:
            size = max(1, round(width * min(room))), max(1, round(height * min(room)))
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        data = f"P6 {image.shape[1]} {image.shape[0]} 255\n".encode() + image.tobytes()
        self._picture = self._tk.PhotoImage(master=self._root, data=data, format="PPM")  # kept, or Tk shows nothing
        self._label.configure(image=self._picture)
        self.look()

    def look(self) -> None:
        """Draw what is new, and see what the person has pressed."""
        try:
            if not self.closed:
                self._root.update()
        except self._tk.TclError:  # it is gone
            self.closed = True

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._root.destroy()
