//! The `colrow` program.

#[allow(dead_code)]
mod report;
#[allow(dead_code)]
mod units;

fn main() {}
