"""The one error a user is meant to read."""


class InctrlError(ValueError):
    """Something in the input is wrong. The message names the file, category or setting, and what to do."""
