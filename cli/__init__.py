"""The command line: validate, call one function of the library, print."""
