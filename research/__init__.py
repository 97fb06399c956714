"""What chose the recipe: studies, learning curves and other networks."""

from kws.command import end_quietly

end_quietly()  # PyTorch takes seconds to import, in which Ctrl-C may come
