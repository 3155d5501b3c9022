"""The only door to compiled code: every module here is built from `ext/`."""
