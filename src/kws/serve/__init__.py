"""After the last step: a model at work, over REST, gRPC and a page that listens.

In: a model of one file, or the champion of models/ for as long as the server runs. Out: words and probabilities.
Start with server.py; service.py answers, models.py holds the model, protocol.py is the Open Inference Protocol.
"""
