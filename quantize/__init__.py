"""Which type each tensor gets, and the encoders that make its bytes."""
