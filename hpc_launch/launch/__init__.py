"""Inside an allocation: run a script as planned."""
