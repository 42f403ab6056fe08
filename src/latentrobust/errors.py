"""The one exception that means: the user's input is wrong, and here is what to do."""


class InputError(ValueError):
    """Bad input. The message is one line: what is wrong, where, and what to do. Entry points exit with 2."""
