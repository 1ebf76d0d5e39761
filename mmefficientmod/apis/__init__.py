"""Python functions behind the tools: predictions, converted checkpoints."""
