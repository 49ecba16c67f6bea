"""Numbers that other people's code gave, and the scripts that asked it."""
