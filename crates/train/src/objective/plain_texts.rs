//! Texts that a model learns to go on with: which column of a file they are.

use colrow_tensor::{Error, Result};

use crate::data::record::{Column, Kind, Reading, Record};
use crate::data::{Counted, Example, Names};
use crate::tasks::Task;

/// Texts of which every token counts: the column that is asked for by name, or `text`.
#[derive(Clone, Copy, Debug)]
pub struct PlainTexts<'a> {
    /// The column's name, if it is not the usual.
    pub text: Option<&'a str>,
}

impl Reading for PlainTexts<'_> {
    fn columns(&self, found: &[&str]) -> Result<Vec<Column>> {
        let name = self.text.unwrap_or("text");
        let mut places = found.iter().enumerate().filter(|(_, other)| **other == name).map(|(place, _)| place);
        let (first, second) = (places.next(), places.next());
        if second.is_some() {
            return Err(Error::new(format!("two columns are called {name:?}, and which is meant cannot be known"))
                .hint("rename or leave out one of them"));
        }
        let place = first.ok_or_else(|| {
            let what = format!("expected a column {name:?} for task text, found columns: {}", found.join(", "));
            let hint = match found.iter().any(|name| super::conversations::USUAL.contains(name)) {
                true => "conversations and completions are read by task = \"chat\"",
                false => "name the column in the recipe: data.text",
            };
            Error::new(what).hint(hint)
        })?;
        Ok(vec![Column::new(Names::TEXT, found, place, Kind::Text)])
    }

    fn example(&self, mut record: Record, _notes: &mut Vec<String>) -> Result<Example> {
        let text = record.text(Names::TEXT).unwrap_or_default();
        let counted = Counted { ranges: std::iter::once(0..text.len()).collect(), whole: false };
        let counted = Some(Box::new(counted));
        Ok(Example { text, counted, line: record.line, row: record.row, ..Example::default() })
    }

    fn lines(&self) -> Result<Column> {
        Ok(Column { role: Names::TEXT, name: String::new(), place: 0, kind: Kind::Text })
    }

    fn asks_by_name(&self) -> bool {
        self.text.is_some()
    }

    fn may_read(&self, name: &str) -> bool {
        name == self.text.unwrap_or("text")
    }

    fn task(&self) -> Task {
        Task::Text
    }
}
