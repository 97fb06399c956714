"""The network and its file formats, which every later step and the deployment use.

In: features or waveforms. Out: scores and probabilities; .pth and .onnx files.
Start with network.py; bundle.py and onnx.py are the two file formats, versions.py the published versions.
"""
