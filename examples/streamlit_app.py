"""A page for a photograph or the webcam: `pip install streamlit`, then `streamlit run examples/streamlit_app.py`."""

import streamlit as st

import mien


@st.cache_resource  # one for all visitors: threads may share it
def reader() -> mien.Reader:
    return mien.Reader.from_pretrained()


st.title("Faces")
st.caption("An expression is what a face shows at one moment, not what somebody feels. Pictures stay on this computer.")
upload, camera = st.tabs(["A photograph", "The webcam"])
picture = upload.file_uploader("A photograph", label_visibility="collapsed")
picture = camera.camera_input("The webcam", label_visibility="collapsed") or picture
if picture is None:
    st.stop()
try:
    faces = reader()(picture)
except mien.ReadError as error:
    st.error(str(error))
    st.stop()
st.image(faces.plot())
if faces:
    shares = {f"face {i}": face.probabilities for i, face in enumerate(faces)}
    st.dataframe(shares, column_config={name: st.column_config.ProgressColumn() for name in shares})
else:
    st.info(faces.note or "No face was found.")
