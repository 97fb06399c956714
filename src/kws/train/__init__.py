"""The third step: tensors become a model.

In: a folder of tensors and a preset. Out: runs/<timestamp>-<run id>/ with best.pth, metrics and TensorBoard.
Start with step.py, which launches, and loop.py, which trains.
"""
