"""Models of kind `nnunet`: a trained nnU-Net v2 folder, by its own preprocessing and networks."""
