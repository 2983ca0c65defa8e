"""The one exception of this package that is the user's to fix."""


class InputError(ValueError):
    """A mistake in what was asked for: the message says what was expected, what came and what to do.

    The command line prints the message as one sentence and exits with 2; every other caller sees a ValueError.
    """
