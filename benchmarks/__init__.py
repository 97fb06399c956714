"""What measures speed, and what tries to break the pipeline."""

from kws.command import end_quietly

end_quietly()  # PyTorch takes seconds to import, in which Ctrl-C may come
