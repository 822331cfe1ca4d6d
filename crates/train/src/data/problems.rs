//! What is wrong with single rows of a file, told together.

use colrow_tensor::{Error, Result};

/// How many different ones are told in full.
const SHOWN: usize = 10;

/// How many rows of one are named.
const ROWS: usize = 5;

/// The errors of single rows: the first ten that differ, where they are, and how many there are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Problems {
    first: Vec<Problem>,
    count: usize,
    untold: usize,
}

/// One error, and the rows that have it.
#[derive(Clone, Debug)]
struct Problem {
    error: Error,
    rows: Vec<u64>,
    count: usize,
}

impl Problem {
    fn place(&self, unit: &str) -> String {
        let rows = self.rows.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
        match self.count {
            1 => format!("{unit} {rows}"),
            n if n <= ROWS => format!("{unit}s {rows}"),
            n => format!("{unit}s {rows} and {} more", n - ROWS),
        }
    }
}

impl Problems {
    /// Notes what is wrong in a line or row.
    pub(crate) fn add(&mut self, number: u64, error: Error) {
        self.count += 1;
        if let Some(same) = self.first.iter_mut().find(|problem| problem.error.what() == error.what()) {
            same.count += 1;
            if same.rows.len() < ROWS {
                same.rows.push(number);
            }
        } else if self.first.len() < SHOWN {
            self.first.push(Problem { error, rows: vec![number], count: 1 });
        } else {
            self.untold += 1;
        }
    }

    /// Whether nothing was wrong so far.
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// All that was wrong as one error; `unit` is what the numbers count, `line` or `row`.
    pub(crate) fn finish(self, unit: &str) -> Result<()> {
        match &self.first[..] {
            [] => return Ok(()),
            [only] => return Err(only.error.clone().at(only.place(unit))),
            _ => {}
        }
        let mut what = format!("{} problems", self.count);
        for problem in &self.first {
            what += &format!("\n  {}: {}", problem.place(unit), problem.error.what());
        }
        if self.untold > 0 {
            what += &format!("\n  and {} more", self.untold);
        }
        let together = Error::new(what);
        Err(match self.first.iter().find_map(|problem| problem.error.advice()) {
            Some(hint) => together.hint(hint),
            None => together,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(whats: &[u64]) -> Result<()> {
        let mut problems = Problems::default();
        for (i, what) in (1..).zip(whats) {
            problems.add(i * i, Error::new(format!("no {what}")).hint(format!("do {what}")));
        }
        assert_eq!(problems.is_empty(), whats.is_empty());
        problems.finish("row")
    }

    #[test]
    fn ten_are_told_and_the_rest_counted() {
        assert!(told(&[]).is_ok());
        assert_eq!(told(&[1]).unwrap_err().to_string(), "no 1\n  in row 1\n  hint: do 1");
        assert_eq!(told(&[1, 2]).unwrap_err().to_string(), "2 problems\n  row 1: no 1\n  row 4: no 2\n  hint: do 1");
        let many = told(&(1..=1000).collect::<Vec<_>>()).unwrap_err().to_string();
        assert!(many.starts_with("1000 problems\n") && many.contains("row 100: no 10\n  and 990 more\n"), "{many}");
        assert!(!many.contains("no 11"));
    }

    #[test]
    fn one_cause_is_told_once() {
        assert_eq!(told(&[7; 3]).unwrap_err().to_string(), "no 7\n  in rows 1, 4, 9\n  hint: do 7");
        let many = told(&[7; 30]).unwrap_err().to_string();
        assert_eq!(many, "no 7\n  in rows 1, 4, 9, 16, 25 and 25 more\n  hint: do 7");
        let two = told(&[7, 8, 7, 7]).unwrap_err().to_string();
        assert_eq!(two, "4 problems\n  rows 1, 9, 16: no 7\n  row 4: no 8\n  hint: do 7");
    }
}
