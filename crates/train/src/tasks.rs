//! The tasks a model can be fine-tuned for: the eight of GLUE, and any classification or regression.

use crate::metrics::Metric;
use colrow_tensor::Error;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What is predicted from a text or a pair of texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Task {
    /// Is a sentence grammatical?
    Cola,
    /// Sentiment of a film review's phrase.
    Sst2,
    /// Do two sentences of news say the same?
    Mrpc,
    /// Do two questions ask the same?
    Qqp,
    /// Does a premise entail a hypothesis, contradict it, or neither?
    Mnli,
    /// Does a sentence answer a question?
    Qnli,
    /// Does the first sentence entail the second?
    Rte,
    /// How similar are two sentences, from 0 to 5?
    Stsb,
    /// Any single-label classification; the labels are those of the training data.
    Classify,
    /// Any regression to one number.
    Regress,
}

impl Task {
    /// Every task, in the order in which errors and help list them.
    pub const ALL: [Task; 10] = [
        Task::Cola,
        Task::Sst2,
        Task::Mrpc,
        Task::Qqp,
        Task::Mnli,
        Task::Qnli,
        Task::Rte,
        Task::Stsb,
        Task::Classify,
        Task::Regress,
    ];

    /// The name used in recipes and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Task::Cola => "cola",
            Task::Sst2 => "sst2",
            Task::Mrpc => "mrpc",
            Task::Qqp => "qqp",
            Task::Mnli => "mnli",
            Task::Qnli => "qnli",
            Task::Rte => "rte",
            Task::Stsb => "stsb",
            Task::Classify => "classify",
            Task::Regress => "regress",
        }
    }

    /// The metrics that are reported: GLUE's own for its tasks. `classify` reports F1 with two labels, its mean over all with more.
    pub fn metrics(self, n_labels: usize) -> &'static [Metric] {
        match self {
            Task::Cola => &[Metric::Matthews],
            Task::Mrpc | Task::Qqp => &[Metric::Accuracy, Metric::F1],
            Task::Classify if n_labels == 2 => &[Metric::Accuracy, Metric::F1],
            Task::Classify => &[Metric::Accuracy, Metric::MacroF1],
            Task::Sst2 | Task::Mnli | Task::Qnli | Task::Rte => &[Metric::Accuracy],
            Task::Stsb | Task::Regress => &[Metric::Pearson, Metric::Spearman],
        }
    }

    /// The metric that picks the best checkpoint unless the recipe names another: the one that the BERT paper reports.
    pub fn main_metric(self) -> Metric {
        match self {
            Task::Cola => Metric::Matthews,
            Task::Mrpc | Task::Qqp => Metric::F1,
            Task::Sst2 | Task::Mnli | Task::Qnli | Task::Rte | Task::Classify => Metric::Accuracy,
            Task::Stsb | Task::Regress => Metric::Spearman,
        }
    }

    /// Whether the label is a number and the loss the squared error.
    pub fn is_regression(self) -> bool {
        matches!(self, Task::Stsb | Task::Regress)
    }

    /// Whether the task cannot do without a second text.
    pub fn needs_pair(self) -> bool {
        matches!(self, Task::Mrpc | Task::Qqp | Task::Mnli | Task::Qnli | Task::Rte | Task::Stsb)
    }

    /// The label names by class index, in the order of `datasets` and `transformers`; `None` where the training data
    /// decides (`classify`) and for regression.
    pub fn labels(self) -> Option<&'static [&'static str]> {
        match self {
            Task::Cola | Task::Sst2 | Task::Mrpc | Task::Qqp => Some(&["0", "1"]),
            Task::Mnli => Some(&["entailment", "neutral", "contradiction"]),
            Task::Qnli | Task::Rte => Some(&["entailment", "not_entailment"]),
            Task::Stsb | Task::Classify | Task::Regress => None,
        }
    }

    /// What the classes are called in words, by class index, as `datasets` names them; `None` where [`Task::labels`] is.
    pub fn class_names(self) -> Option<&'static [&'static str]> {
        match self {
            Task::Cola => Some(&["unacceptable", "acceptable"]),
            Task::Sst2 => Some(&["negative", "positive"]),
            Task::Mrpc => Some(&["not_equivalent", "equivalent"]),
            Task::Qqp => Some(&["not_duplicate", "duplicate"]),
            _ => self.labels(),
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Task {
    type Err = Error;

    /// Ignores case, and hyphens: `SST-2` is `sst2`.
    fn from_str(given: &str) -> Result<Self, Error> {
        let plain = given.trim().to_lowercase().replace('-', "");
        Task::ALL
            .into_iter()
            .find(|task| task.name() == plain)
            .ok_or_else(|| unknown("task", given, &plain, &Task::ALL.map(Task::name)))
    }
}

impl TryFrom<String> for Task {
    type Error = Error;

    fn try_from(given: String) -> Result<Self, Error> {
        given.parse()
    }
}

impl From<Task> for String {
    fn from(task: Task) -> Self {
        task.name().to_owned()
    }
}

/// The error for a name that is none of `known`: gives the nearest, then all.
pub(crate) fn unknown(kind: &str, given: &str, plain: &str, known: &[&str]) -> Error {
    let all = known.join(", ");
    let nearest = known
        .iter()
        .map(|name| (strsim::jaro_winkler(plain, name), name))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(likeness, _)| *likeness > 0.6);
    let hint = match nearest {
        Some((_, name)) => format!("did you mean {name}? Known: {all}"),
        None => format!("known: {all}"),
    };
    Error::usage(format!("unknown {kind} {given:?}")).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back_whatever_their_case() {
        for task in Task::ALL {
            assert_eq!(task.name().parse::<Task>().unwrap(), task);
            assert_eq!(task.name().to_uppercase().parse::<Task>().unwrap(), task);
            let json = serde_json::to_string(&task).unwrap();
            assert_eq!(json, format!("\"{task}\""));
            assert_eq!(serde_json::from_str::<Task>(&json).unwrap(), task);
        }
        assert_eq!("SST-2".parse::<Task>().unwrap(), Task::Sst2);
        assert_eq!("sts-b".parse::<Task>().unwrap(), Task::Stsb);
    }

    #[test]
    fn unknown_name_gets_the_nearest_and_all() {
        let error = "mnlli".parse::<Task>().unwrap_err();
        assert_eq!(error.kind(), colrow_tensor::Kind::Usage);
        let message = error.to_string();
        assert!(message.contains("unknown task \"mnlli\""), "{message}");
        assert!(message.contains("did you mean mnli?"), "{message}");
        for task in Task::ALL {
            assert!(message.contains(task.name()), "{message}");
        }
        assert!(!"0".parse::<Task>().unwrap_err().to_string().contains("did you mean"));
        assert!(serde_json::from_str::<Task>("\"xyz\"").is_err());
    }

    #[test]
    fn glue_metrics_and_labels() {
        assert_eq!(Task::Cola.metrics(2), [Metric::Matthews]);
        assert_eq!(Task::Mrpc.metrics(2), [Metric::Accuracy, Metric::F1]);
        assert_eq!(Task::Rte.metrics(2), [Metric::Accuracy]);
        assert_eq!(Task::Stsb.metrics(1), [Metric::Pearson, Metric::Spearman]);
        assert_eq!(Task::Classify.metrics(2), [Metric::Accuracy, Metric::F1]);
        assert_eq!(Task::Classify.metrics(3), [Metric::Accuracy, Metric::MacroF1]);
        assert_eq!(Task::Rte.labels().unwrap(), ["entailment", "not_entailment"]);
        assert_eq!(Task::Mnli.labels().unwrap(), ["entailment", "neutral", "contradiction"]);
        for task in Task::ALL {
            assert_eq!(task.is_regression(), task.metrics(1).contains(&Metric::Pearson));
            assert!(task.metrics(2).contains(&task.main_metric()));
        }
    }
}
