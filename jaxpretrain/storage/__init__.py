"""Files that appear whole or not at all, the files of a run, and the cache folder."""
