"""The second step: converts recordings to tensors.

In: a recordings folder. Out: tensors/<fingerprint>/, an index of the clips over parts of features in features/.
Start with step.py; audio.py reads a clip, features.py defines its features, store.py keeps them.
"""
