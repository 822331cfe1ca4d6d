//! The classes of a classification: their names, and what labels reach them.

use std::collections::{BTreeSet, HashMap};

use colrow_tensor::Error;

use super::Examples;
use super::alike::{difference, folded, integer};
use crate::tasks::Task;

/// Classes by index, and what files call them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classes {
    /// Distinct names by class index.
    pub(super) names: Vec<String>,
    /// The class of each name, and of the names that the task has for it.
    pub(super) by_name: HashMap<String, u32>,
    /// The class of each name as [`folded`]; `None` where that is several.
    pub(super) by_folded: HashMap<String, Option<u32>>,
    /// The class that a file's index means; none if indices are no labels.
    pub(super) by_index: Vec<Option<u32>>,
    /// Whether the task or the data says so, not the place alone.
    pub(super) indices_are_told: bool,
    /// What the user should know.
    pub(super) notes: Vec<String>,
}

/// As many things as a warning or an error lists.
pub(super) const SHOWN: usize = 20;

impl Classes {
    pub(super) fn new(names: Vec<String>) -> Self {
        let (mut by_name, mut by_folded) = (HashMap::new(), HashMap::new());
        let mut near = Vec::new();
        for (i, name) in (0..).zip(&names) {
            by_name.entry(name.clone()).or_insert(i);
            by_folded
                .entry(folded(name))
                .and_modify(|first: &mut Option<u32>| {
                    near.extend(first.map(|first| (first, i)));
                    *first = None;
                })
                .or_insert(Some(i));
        }
        let two = |&(i, j): &(u32, u32)| {
            let (a, b, how) = difference(&names[i as usize], &names[j as usize]);
            format!("labels {a} and {b} differ only {how}, and are two classes")
        };
        let notes = near.iter().take(SHOWN).map(two).collect();
        // files of `datasets` give the index of a name
        let indices = if names.iter().all(|name| integer(name).is_none()) { names.len() } else { 0 };
        let by_index = (0..indices as u32).map(Some).collect();
        Self { names, by_name, by_folded, by_index, indices_are_told: false, notes }
    }

    /// Takes what `task` calls its classes, by index in `labels` and in `words`.
    pub(super) fn speak(&mut self, task: Task, labels: &[&str], words: &[&str]) {
        self.indices_are_told = true;
        let pairs = || labels.iter().zip(words);
        let outputs: Vec<Option<u32>> =
            pairs().map(|(label, word)| self.find(word).or_else(|| self.find(label))).collect();
        if outputs.iter().all(Option::is_none) {
            if !is_unnamed(&self.names) {
                self.notes.push(format!(
                    "the labels {} are none of {task}'s {}: the indices of its classes are read as the numbers of the outputs",
                    listed(&self.names),
                    listed(words)
                ));
                return;
            }
            // the numbers of the outputs are all that is known
            self.by_index = (0..self.names.len() as u32).map(Some).collect();
        } else {
            self.by_index = outputs;
        }
        for ((label, word), output) in pairs().zip(self.by_index.clone()) {
            for (name, output) in [word, label].into_iter().zip([output; 2]).filter_map(|(n, o)| Some((n, o?))) {
                self.by_name.entry((*name).to_owned()).or_insert(output);
            }
        }
    }

    pub(super) fn exact(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    /// The class of this name, if need be without regard to case and white space.
    pub(super) fn find(&self, name: &str) -> Option<u32> {
        self.exact(name).or_else(|| self.by_folded.get(&folded(name)).copied().flatten())
    }

    /// The class of a label by its name, to the letter, or its index.
    pub(super) fn as_written(&self, label: &str) -> Option<u32> {
        let by_number = |n: i128| {
            let by_index = || usize::try_from(n).ok().and_then(|n| *self.by_index.get(n)?);
            self.exact(&n.to_string()).or_else(by_index)
        };
        self.exact(label).or_else(|| integer(label).and_then(by_number)).or_else(|| self.truth(label))
    }

    /// The class of a truth value where the classes are 0 and 1: Parquet and JSON have such values, CSV has words for them.
    pub(super) fn truth(&self, label: &str) -> Option<u32> {
        let value = ["0", "1"][["false", "true"].iter().position(|word| label.eq_ignore_ascii_case(word))?];
        if self.names.len() == 2 { self.exact(value) } else { None }
    }

    pub(super) fn class(&self, label: &str) -> Option<u32> {
        self.as_written(label).or_else(|| self.find(label))
    }

    /// How the labels of `examples` are read: where the file names its integers and the model's outputs have no names, by these integers.
    pub(super) fn reader<'a>(&'a self, examples: &'a Examples) -> impl Fn(&str) -> Option<u32> + 'a {
        let indices = examples.classes.iter().enumerate().map(|(i, name)| (name.as_str(), i));
        let indices: HashMap<&str, usize> = if is_unnamed(&self.names) { indices.collect() } else { HashMap::new() };
        let placeholders = is_placeholder(&self.names);
        move |label| {
            let by_index = || self.as_written(&indices.get(label)?.to_string());
            if placeholders { by_index().or_else(|| self.class(label)) } else { self.class(label).or_else(by_index) }
        }
    }

    /// What integers of a file mean whose classes have names that the file does not know.
    pub(super) fn by_place(&self, examples: &Examples) -> Option<String> {
        if self.by_index.is_empty() || self.indices_are_told || is_unnamed(&self.names) || !examples.classes.is_empty()
        {
            return None;
        }
        let labels = examples.rows.iter().filter_map(|e| e.label.as_deref()).filter(|label| self.find(label).is_none());
        let by_place: BTreeSet<u32> = labels.filter_map(|label| self.as_written(label)).collect();
        let named = by_place.iter().map(|&i| format!("{i} as {:?}", self.names[i as usize])).collect::<Vec<_>>();
        (!named.is_empty())
            .then(|| format!("integer labels are read by their place in the model's outputs: {}", listed(&named)))
    }

    pub(super) fn unknown(&self, label: &str) -> Error {
        let mut hint = format!("known: {}", listed(&self.names));
        if label == "-1" {
            hint += "; -1 stands for a label that is not told: is this a test split?";
        }
        Error::new(format!("unknown label {label:?}")).hint(hint)
    }
}

/// The names that a file gives the classes of a GLUE task, in the task's order where they are the task's own words, else as they stand.
pub(super) fn names_of_file(task: Task, classes: &[String]) -> Option<Vec<String>> {
    let words = task.class_names().filter(|words| words.len() == classes.len())?;
    let file = Classes::new(classes.to_vec());
    let places: Option<Vec<u32>> = words.iter().map(|word| file.find(word)).collect();
    Some(match places {
        Some(places) => places.into_iter().map(|i| classes[i as usize].clone()).collect(),
        None => classes.to_vec(),
    })
}

/// The first of `names`, and how many more there are.
pub(super) fn listed<S: AsRef<str>>(names: &[S]) -> String {
    let shown = names.iter().take(SHOWN).map(AsRef::as_ref).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN { format!("{shown} and {} more", names.len() - SHOWN) } else { shown }
}

/// Whether the names are those that `transformers` gives outputs without names.
pub(super) fn is_placeholder(names: &[String]) -> bool {
    names.iter().enumerate().all(|(i, name)| name.strip_prefix("LABEL_").is_some_and(|n| n == i.to_string()))
}

/// Whether the names say no more than the number of the output.
pub fn is_unnamed(names: &[String]) -> bool {
    is_placeholder(names) || names.iter().enumerate().all(|(i, name)| *name == i.to_string())
}
