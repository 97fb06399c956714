"""The fourth step: how good the model is.

In: a model and the test split, or any recordings. Out: figures, the confusion matrix, the report.
Start with step.py; accuracy.py computes the figures, robustness.py those under difficult conditions.
"""
