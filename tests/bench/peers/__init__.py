"""Other servers under the same load, each in a virtual environment of its own.

Versions are pinned in `NAME.txt`, and `NAME_server.py` is the server: a few lines as its documentation has
them, with one process that runs the model, Pillow to decode, and the server's own dynamic batching where it
has one. TensorFlow is not installed again: the project's packages are on the path, behind the peer's own.
"""
