"""After the last step: serves a model over REST, gRPC and a web page.

In: an .onnx file, or the current champion of models/. Out: words and probabilities.
Start with server.py; service.py handles requests, models.py loads and swaps the model, protocol.py is the Open
Inference Protocol.
"""
