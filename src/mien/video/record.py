"""A frame as plain data."""

from mien.faces.record import Record, no_face, record
from mien.video.read import VideoFrame


def video_records(source: str, frame: VideoFrame) -> list[Record]:
    """The faces of a frame, one record each; where there are none, one record that says so.

    source: the name of the video, as records give it.
    frame: the frame and its faces.

    They are those of a picture (`mien.faces.record`), and also hold the time in seconds, rounded to millionths, the
    number of the frame, its width and height, the track and the unsmoothed probabilities.
    """
    records = []
    for index, face in enumerate(frame.faces):
        found = record(source, index, face)
        if face.unsmoothed is not None:
            found["unsmoothed"] = {label: round(prob, 6) for label, prob in face.unsmoothed.items()}
        records.append((found, face.track))
    records = records or [(no_face(source, "no face found"), None)]
    when = {"time": round(frame.time, 6), "frame": frame.number, "width": frame.width, "height": frame.height}
    return [{"source": found.pop("source"), **when, "track": track, **found} for found, track in records]
