"""The exceptions that say what the user can fix."""


class InputError(ValueError):
    """A mistake in the input: the message says what was expected, what came and what to do.

    The command line prints the message as one sentence and exits with 2; every other caller sees a
    ValueError.
    """


class NotFinite(InputError):
    """Something that must be finite is not; `name` says what."""

    def __init__(self, name, why="is not finite."):
        super().__init__(name, why)
        self.name, self.why = name, why

    def __str__(self):
        return f"{self.name} {self.why}"
