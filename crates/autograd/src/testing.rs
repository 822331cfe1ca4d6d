//! Checks that ops are tested with: finite differences and unbiasedness.
