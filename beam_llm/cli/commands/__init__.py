"""The commands' arguments, one file each; what a command does is imported when it runs."""
