//! Model families, one a file, and the checkpoints they come from.
