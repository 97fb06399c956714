"""The second step: converts recordings to tensors.

In: a recordings folder. Out: tensors/<fingerprint>/ with features, labels and clip ids of each split.
Start with step.py; audio.py reads a clip, features.py defines its features.
"""
