"""The asynchronous flavour of the client."""
