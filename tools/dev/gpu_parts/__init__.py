"""The parts of ``tools/dev/gpu_check.py``, one module each or two."""
