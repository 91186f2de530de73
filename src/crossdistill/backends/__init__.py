"""Networks of other libraries by name: pretrained encoders and classifiers with their preparation, taps and licence."""
