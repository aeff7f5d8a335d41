"""The one exception that means "the user can mend this".

Every other exception is a defect of ours and shows its traceback.
"""

# What a message quotes, say a tensor's name, can be of any length.
_LONGEST = 2000


class UserError(Exception):
    """A mistake the user can mend.

    The message is one sentence: what was wrong, where (file, line, key), what would be accepted.
    The command line prints it after `groundup: ` and exits with code 2. What it quotes can come from a stranger's file,
    so letters that would steer a terminal are shown as escapes, and the middle of an endless message is left out.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        if len(line) > _LONGEST:
            line = f"{line[: _LONGEST // 2]} … {line[-_LONGEST // 2 :]}"
        super().__init__("".join(one if one.isprintable() else ascii(one)[1:-1] for one in line))
