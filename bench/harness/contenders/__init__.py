"""One file per stack. Imported in the child process of that stack only."""
