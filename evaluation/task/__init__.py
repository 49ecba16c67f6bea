"""One task a file; conf/task/<name>.yaml calls its class."""
