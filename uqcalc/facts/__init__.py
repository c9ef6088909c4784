"""What files and objects of ours hold, in words, ready to be shown."""
