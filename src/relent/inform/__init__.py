"""What a user wants to know: the catalogue, one method or task, this machine, and the generated pages. No torch."""
