"""A frame as plain data."""

from mien.faces.row import Row, no_face, row
from mien.video.read import VideoFrame


def video_rows(source: str, frame: VideoFrame) -> list[Row]:
    """A row a face, as of a picture, with time in seconds to millionths, frame, track and unsmoothed probabilities;
    one row that says so where there is no face."""
    rows = []
    for index, face in enumerate(frame.faces):
        told = row(source, index, face)
        if face.unsmoothed is not None:
            told["unsmoothed"] = {label: round(share, 6) for label, share in face.unsmoothed.items()}
        rows.append((told, face.track))
    rows = rows or [(no_face(source, "no face found"), None)]
    when = {"time": round(frame.time, 6), "frame": frame.number}
    return [{"source": told.pop("source"), **when, "track": track, **told} for told, track in rows]
