"""Exported files in the place of a toolbox's model, to test and to predict."""
