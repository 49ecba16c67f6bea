"""The frameworks that hold the model; everything above them speaks the protocol of `base`."""
