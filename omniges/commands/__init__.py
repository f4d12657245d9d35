"""The commands of `omniges`. Each command parses its arguments, builds settings, calls one function and exits."""
