"""What a model costs: parameters, FLOPs and memory."""
