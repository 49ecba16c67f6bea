"""`python -m slimrun` is `slimrun`."""

from slimrun.runner.main import main

if __name__ == "__main__":
    main()
