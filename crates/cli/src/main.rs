//! The `colrow` program.

#[allow(dead_code)]
mod fetch;
#[allow(dead_code)]
mod npy;
mod reviews;

fn main() {}
