"""The fourth step: evaluates the model.

In: a model and the test split, or any recordings. Out: metrics, the confusion matrix, the report.
Start with step.py; accuracy.py computes the metrics, robustness.py the accuracy under difficult conditions, and
streams.py misses and false alarms in long streams.
"""
