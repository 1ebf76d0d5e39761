"""What takes part in a run besides model and data."""
