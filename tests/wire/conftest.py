"""Examples may take as long as they like: on a busy machine a time limit finds nothing but the load."""

from hypothesis import settings

settings.register_profile("wire", deadline=None)
settings.load_profile("wire")
