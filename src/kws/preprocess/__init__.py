"""The second step: recordings become tensors.

In: a folder of recordings. Out: tensors/<fingerprint>/, features, labels and clip ids by split.
Start with step.py; audio.py reads one clip, features.py says what its features are.
"""
