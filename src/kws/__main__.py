"""The entry point of the command `kws` and of `python -m kws`."""

from kws.command import as_command


def main() -> None:
    """Runs the command line."""
    with as_command():  # here too, as Ctrl-C may come during the imports
        from kws.cli import main as run

        run()


if __name__ == "__main__":
    main()
