"""Models of kind `monai-bundle`: with their own pre- and postprocessing, in this process."""
