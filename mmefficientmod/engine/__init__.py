"""Running a model: runners, hooks, processes, seeds, resuming, messages."""
