"""Commands of their own file, and the options that commands share."""
