"""Properties are judged by what they find, not by how long it took: as tests/conftest.py, which is not read here."""

from hypothesis import settings

settings.register_profile("anew", deadline=None)
settings.register_profile("same", deadline=None, derandomize=True)
settings.load_profile("same")
