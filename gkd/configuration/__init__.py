"""Gin files: reading them, checking every binding, and the accepted values of every parameter.

In: gin files and `--gin.NAME=VALUE` overrides. Out: a reader that holds all bindings, or a
`ConfigError` of one line with file and line. Nothing is imported or run before it is checked.
"""
