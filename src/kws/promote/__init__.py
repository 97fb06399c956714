"""The fifth step: publishes the model and decides whether it replaces the one in use.

In: a model, its evaluation and the champion so far. Out: models/<version>/ and models/champion.json.
Start with step.py; publish.py fills the folder of a version.
"""
