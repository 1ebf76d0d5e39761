"""What the tools do, for Python: predictions, and weights converted."""
