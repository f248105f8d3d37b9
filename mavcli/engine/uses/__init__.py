"""What the cascade is used for, one function each: no terminal, no files of results."""
