"""Time and memory of models side by side: see ``tools/benchmark.py``.

``model_specs.py`` and ``official.py`` find the models that a command line
names. ``cases.py`` and ``inputs.py`` say what they run on, ``workloads.py``
prepares what is run, ``measure.py`` and ``breakdown.py`` measure it, and
``results.py`` keeps what was measured. ``tables.py``, ``terminal.py``,
``figures.py`` and ``report.py`` show it, beside the accuracies of
``published.py``.

``training/`` trains models side by side: see ``tools/compare.py``.
"""
