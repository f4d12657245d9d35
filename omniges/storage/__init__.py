"""Local files and object stores: atomic writes, locks, downloads, a cache, and checks of files of unknown origin."""
