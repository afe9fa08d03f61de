"""Data sets as token sequences."""
