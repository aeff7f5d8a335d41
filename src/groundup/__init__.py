"""groundup: own a language model from raw text up.

The rooms of the house and their floors are described in docs/architecture.md. Importing the package imports none of
them: each verb of the command line loads only what it needs.
"""

__version__ = "0.1.0"
