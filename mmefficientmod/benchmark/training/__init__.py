"""Trainings side by side: see ``tools/compare.py``."""
