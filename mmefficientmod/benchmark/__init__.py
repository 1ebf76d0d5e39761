"""Speed and memory of models, side by side: see ``tools/benchmark.py``.

``candidates.py`` turns names into models, ``work.py`` says what of a model is
run, ``measure.py`` runs it, ``results.py`` keeps what came out, and
``report.py`` shows it. ``training.py``, with ``hook.py`` and
``training_report.py``, trains: see ``tools/compare.py``.
"""
