"""Speed and memory of models, side by side: see ``tools/benchmark.py``.

A model is named (``model_specs.py``, ``official.py``), a case says at which
size and in which mode it runs (``cases.py``, ``inputs.py``), ``workloads.py``
prepares the run, ``measure.py`` measures it, ``results.py`` keeps the figures,
and ``tables.py``, ``figures.py`` and ``report.py`` show them. ``training/``
trains models side by side: see ``tools/compare.py``.
"""
