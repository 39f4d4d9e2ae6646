"""A page in the browser: photographs and videos are read, and what the network looked at is shown."""
