//! One op a file: what it computes, what it keeps for the backward pass, its gradient.
