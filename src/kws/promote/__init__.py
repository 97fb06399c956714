"""The fifth step: whether the model replaces the one in use.

In: a model, its evaluation and the champion so far. Out: models/<version>/ and models/champion.json.
Start with step.py.
"""
