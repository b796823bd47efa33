"""`python -m inctrl_lite`, which `accelerate launch -m inctrl_lite` needs."""

from inctrl_lite.cli import main

if __name__ == "__main__":
    main()
