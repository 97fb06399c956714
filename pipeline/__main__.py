"""The entry point of `python -m pipeline`."""

from kws.command import as_command

if __name__ == "__main__":
    with as_command():  # here too, as the imports take a second, in which Ctrl-C may come
        from pipeline.cli import main

        main()
