class UserError(Exception):
    """An error the user can mend: printed without a traceback."""
