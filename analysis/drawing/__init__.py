"""Pictures and files of what was found."""
