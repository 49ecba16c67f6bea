"""`slimrun`, and `python -m slimrun`."""

import gc


def main() -> None:
    """The command line of `slimrun.runner.main`.

    Three hundred thousand objects that imports make stay to the end: looking through them again and again takes a sixth
    of the time in which a plan is told.
    """
    gc.disable()
    from slimrun.runner.main import main

    gc.freeze()
    gc.enable()
    main()


if __name__ == "__main__":
    main()
