"""`slimrun`, and `python -m slimrun`."""

import gc
import os


def main() -> None:
    """The command line of `slimrun.runner.main`.

    Three hundred thousand objects that imports make stay to the end: looking through them again and again takes a sixth
    of the time in which a plan is told. Memory of large tensors comes in huge pages where the system has them: to clear
    it page by page takes a seventh of the time of rounding a large weight.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by torch: c10/core/impl/alloc_cpu.cpp
    gc.disable()
    from slimrun.runner.main import main

    gc.freeze()
    gc.enable()
    main()


if __name__ == "__main__":
    main()
