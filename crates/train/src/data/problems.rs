//! What is wrong with single rows of a file, told together.

use colrow_tensor::{Error, Result};

/// How many are told in full.
const SHOWN: usize = 10;

/// The errors of single rows: the first ten, and how many there are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Problems {
    first: Vec<(u64, Error)>,
    count: usize,
}

impl Problems {
    /// Notes what is wrong in a line or row.
    pub(crate) fn add(&mut self, number: u64, error: Error) {
        self.count += 1;
        if self.first.len() < SHOWN {
            self.first.push((number, error));
        }
    }

    /// Whether nothing was wrong so far.
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// All that was wrong as one error; `unit` is what the numbers count, `line` or `row`.
    pub(crate) fn finish(self, unit: &str) -> Result<()> {
        let [(number, error), ..] = &self.first[..] else { return Ok(()) };
        if self.count == 1 {
            return Err(error.clone().at(format_args!("{unit} {number}")));
        }
        let mut what = format!("{} problems", self.count);
        for (number, error) in &self.first {
            what += &format!("\n  {unit} {number}: {}", error.what());
        }
        if self.count > SHOWN {
            what += &format!("\n  and {} more", self.count - SHOWN);
        }
        let together = Error::new(what);
        Err(match self.first.iter().find_map(|(_, error)| error.advice()) {
            Some(hint) => together.hint(hint),
            None => together,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(count: u64) -> Result<()> {
        let mut problems = Problems::default();
        (1..=count).for_each(|i| problems.add(i * i, Error::new(format!("no {i}")).hint(format!("do {i}"))));
        assert_eq!(problems.is_empty(), count == 0);
        problems.finish("row")
    }

    #[test]
    fn ten_are_told_and_the_rest_counted() {
        assert!(told(0).is_ok());
        assert_eq!(told(1).unwrap_err().to_string(), "no 1\n  in row 1\n  hint: do 1");
        assert_eq!(told(2).unwrap_err().to_string(), "2 problems\n  row 1: no 1\n  row 4: no 2\n  hint: do 1");
        let many = told(1000).unwrap_err().to_string();
        assert!(many.starts_with("1000 problems\n") && many.contains("row 100: no 10\n  and 990 more\n"), "{many}");
        assert!(!many.contains("no 11"));
    }
}
