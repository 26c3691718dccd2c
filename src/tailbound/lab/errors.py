"""What the user can put right. The command line prints it as one line and exits with 2."""


class InputError(Exception):
    """Something that was asked for cannot be had: what came, what is allowed, what to do."""
