"""The one kind of error that is the user's and not ours."""


class AgiqaError(ValueError):
    """A mistake in what a user gave: params, files, arguments. Its message is one line that names what would be right.

    The command and the stages print that line alone; whatever else is raised is a fault of ours and shows where.
    """
