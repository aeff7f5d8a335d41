"""The one exception that means "the user can mend this".

Every other exception is a defect of ours and shows its traceback.
"""


class UserError(Exception):
    """A mistake the user can mend.

    The message is one sentence: what was wrong, where (file, line, key), what would be accepted.
    The command line prints it after `groundup: ` and exits with code 2.
    """
