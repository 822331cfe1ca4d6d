//! The `colrow` program.

fn main() {}
