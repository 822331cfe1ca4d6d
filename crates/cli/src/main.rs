//! The `colrow` program.

#[allow(dead_code)]
mod fetch;
#[allow(dead_code)]
mod npy;
#[allow(dead_code)]
mod report;
mod reviews;
#[allow(dead_code)]
mod units;

fn main() {}
