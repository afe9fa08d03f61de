"""The version, of package and build alike: read by setuptools without importing anything."""

__version__ = "0.1.0"
