"""`python -m runner` is `slimrun`."""

from runner.main import main

if __name__ == "__main__":
    main()
