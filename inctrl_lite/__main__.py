"""`python -m inctrl_lite`, which `accelerate launch -m inctrl_lite` needs."""

from inctrl_lite.cli import main

main()
