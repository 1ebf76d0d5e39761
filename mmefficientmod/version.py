"""The version, alone in a file so that packaging can read it cheaply."""

__version__ = '0.1.0'
