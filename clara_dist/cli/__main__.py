"""`python -m clara_dist.cli`."""

from clara_dist.cli import main

if __name__ == "__main__":
    main()
