"""The first module that the fork server of the workers imports: Ctrl-C then ends server and workers without a word.

The server inherits that Ctrl-C is ignored, as Python itself would print a traceback. Only a module can change this
before the server imports and compiles for seconds, so importing this one does something, though not in other processes.
"""

import signal

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
