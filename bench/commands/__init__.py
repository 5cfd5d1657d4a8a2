"""The commands of `bench`, one module each."""
