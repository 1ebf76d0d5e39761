"""Layers that backbones share, and how they run fast."""
