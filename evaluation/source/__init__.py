"""Where a task reads its items from: the pinned sets, and files of the user."""
