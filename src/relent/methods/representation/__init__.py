"""Methods that change the loss of the last layers: the geometry of features and the scores of classes."""
