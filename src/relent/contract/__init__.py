"""The contract test: what every method must keep, checked on one method in seconds (`relent check-method NAME`)."""
