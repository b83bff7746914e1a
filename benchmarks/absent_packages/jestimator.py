"""Stands for a package that T5X imports and that is on no index: every attribute is empty."""


class _Empty(type):
    """A class without content, whose attributes are such classes too."""

    def __getattr__(cls, name):
        return __getattr__(name)


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return _Empty(name, (), {})
