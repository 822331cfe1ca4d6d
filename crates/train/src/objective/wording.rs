//! Tasks in words, for models that read and answer in text: T5's own recipe for GLUE (Raffel et al. 2020, appendix D).

use std::collections::HashMap;

use crate::data::{Example, LabelMap, Labels};
use crate::metrics::Predictions;
use crate::tasks::{Task, Which};

/// What T5's evaluation takes for a number that was not given.
const NO_NUMBER: f64 = -1.0;

/// How a task's examples and labels are put into words, and answers read.
#[derive(Clone, Debug)]
pub struct Wording {
    task: Task,
    /// The answers by class.
    pub(super) words: Vec<String>,
}

impl Wording {
    /// The wording of `task`. The answers are T5's for GLUE, else the names of the labels.
    pub fn new(task: Task, map: &LabelMap) -> Self {
        Self { task, words: task.class_names().map_or_else(|| map.names().to_vec(), owned) }
    }

    /// What the model reads.
    pub fn source(&self, example: &Example) -> String {
        let spec = self.task.spec();
        if !spec.glue && example.pair.is_none() {
            return example.text.clone();
        }
        let name = Some(spec.name).filter(|_| spec.glue).map(str::to_owned);
        let texts = spec.reads.iter().map(|(key, which)| match which {
            Which::First => format!("{key}: {}", example.text),
            Which::Second => format!("{key}: {}", example.pair.as_deref().unwrap_or_default()),
        });
        name.into_iter().chain(texts).collect::<Vec<_>>().join(" ")
    }

    /// What the model is to answer to example `i`: for STS-B the score rounded to the nearest 0.2.
    pub fn target(&self, labels: &Labels, i: usize) -> String {
        match labels {
            Labels::Class(classes) => self.words[classes[i] as usize].clone(),
            Labels::Value(values) if self.task.spec().fifths => {
                // in f32, as T5's data was made
                format!("{:.1}", (values[i] * 5.0).round_ties_even() / 5.0)
            }
            Labels::Value(values) => values[i].to_string(),
        }
    }

    /// Whether an answer is that of a label, or a number where numbers are asked for; `None` if no labels are known.
    pub fn is_label(&self, answer: &str) -> Option<bool> {
        match self.task.is_regression() {
            true => Some(number(answer).is_some()),
            false if self.words.is_empty() => None,
            false => Some(self.words.iter().any(|word| word == answer || word == answer.trim())),
        }
    }

    /// What answers say. One that is no label's is a class of its own, after the others; one that is no number counts as −1, as in T5's
    /// evaluation.
    pub fn read(&self, answers: &[String]) -> Predictions {
        if self.task.is_regression() {
            return Predictions::Values(answers.iter().map(|a| number(a).unwrap_or(NO_NUMBER)).collect());
        }
        let classes: HashMap<&str, u32> = self.words.iter().map(String::as_str).zip(0..).collect();
        let class = |answer: &String| classes.get(answer.as_str()).or_else(|| classes.get(answer.trim())).copied();
        Predictions::Classes(answers.iter().map(|a| class(a).unwrap_or(self.words.len() as u32)).collect())
    }
}

/// The number that a text says.
pub(super) fn number(text: &str) -> Option<f64> {
    text.trim().parse().ok().filter(|x: &f64| x.is_finite())
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(text: &str, pair: Option<&str>) -> Example {
        Example { text: text.into(), pair: pair.map(str::to_owned), line: 1, ..Example::default() }
    }

    fn wording(task: Task) -> Wording {
        let names = task.labels().map_or_else(|| vec!["no".into(), "yes".into()], owned);
        Wording::new(task, &LabelMap::from_names(names))
    }

    #[test]
    fn every_task_is_worded_as_t5_learned_it() {
        for (task, source, targets) in [
            (Task::Cola, "cola sentence: A", "unacceptable acceptable"),
            (Task::Sst2, "sst2 sentence: A", "negative positive"),
            (Task::Mrpc, "mrpc sentence1: A sentence2: B", "not_equivalent equivalent"),
            (Task::Qqp, "qqp question1: A question2: B", "not_duplicate duplicate"),
            (Task::Mnli, "mnli hypothesis: B premise: A", "entailment neutral contradiction"),
            (Task::Qnli, "qnli question: A sentence: B", "entailment not_entailment"),
            (Task::Rte, "rte sentence1: A sentence2: B", "entailment not_entailment"),
            (Task::Classify, "sentence1: A sentence2: B", "no yes"),
        ] {
            let pair = (!matches!(task, Task::Cola | Task::Sst2)).then_some("B");
            assert_eq!(wording(task).source(&example("A", pair)), source);
            let n = targets.split(' ').count();
            let labels = Labels::Class((0..n as u32).collect());
            let words: Vec<String> = (0..n).map(|i| wording(task).target(&labels, i)).collect();
            assert_eq!(words.join(" "), targets);
            let back = (0..n as u32).collect();
            assert_eq!(wording(task).read(&words), Predictions::Classes(back));
        }
        assert_eq!(wording(Task::Stsb).source(&example("A", Some("B"))), "stsb sentence1: A sentence2: B");
        assert_eq!(wording(Task::Classify).source(&example("A", None)), "A");
    }

    /// 2.5 and 0.1 are halfway between two fifths; the even one is taken.
    #[test]
    fn scores_are_rounded_to_a_fifth_and_read_back() {
        let stsb = wording(Task::Stsb);
        let scores = [0.0, 0.1, 0.31, 2.5, 2.749, 4.95, 5.0];
        let labels = Labels::Value(scores.to_vec());
        let words: Vec<String> = (0..scores.len()).map(|i| stsb.target(&labels, i)).collect();
        assert_eq!(words, ["0.0", "0.0", "0.4", "2.4", "2.8", "5.0", "5.0"]);
        assert_eq!(stsb.read(&words), Predictions::Values(vec![0.0, 0.0, 0.4, 2.4, 2.8, 5.0, 5.0]));
        let odd: Vec<String> = ["2,5", "", "NaN", " 3.0 "].map(str::to_owned).to_vec();
        assert_eq!(stsb.read(&odd), Predictions::Values(vec![-1.0, -1.0, -1.0, 3.0]));
    }

    #[test]
    fn answers_that_are_no_label_are_a_class_of_their_own() {
        let answers: Vec<String> = ["positive", "negative ", "Positive", "good", ""].map(str::to_owned).to_vec();
        assert_eq!(wording(Task::Sst2).read(&answers), Predictions::Classes(vec![1, 0, 2, 2, 2]));
        let labels: Vec<_> = answers.iter().map(|answer| wording(Task::Sst2).is_label(answer)).collect();
        assert_eq!(labels, [true, true, false, false, false].map(Some));
        let numbers = ["2.4", " 3", "-1", "2,5", "nan"].map(|answer| wording(Task::Stsb).is_label(answer));
        assert_eq!(numbers, [true, true, true, false, false].map(Some));
        assert_eq!(Wording::new(Task::Classify, &LabelMap::from_names(Vec::new())).is_label("good"), None);
    }
}
