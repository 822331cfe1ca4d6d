//! The tasks that recipes name: the eight of GLUE, any classification or regression, and texts that a model goes on with. All that is known of one beside its data is a row of
//! one table.

use std::fmt;
use std::str::FromStr;

use colrow_tensor::{Error, Result};
use serde::{Serialize, Serializer};

use crate::metrics::Metric;
use crate::unknown::unknown;

/// Names of the text column and, for pairs, of the second one.
pub(crate) type Layout = (&'static str, Option<&'static str>);

/// What is to be said of an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Which of some classes it is.
    Class,
    /// A number.
    Number,
    /// Its own tokens, each after those before it.
    Tokens,
}

/// One of an example's texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    First,
    Second,
}

/// What is known of a task.
pub(crate) struct Spec {
    /// The name in recipes and on the command line.
    pub(crate) name: &'static str,
    pub(crate) answer: Answer,
    /// Whether files and words are GLUE's: in a folder quotes stand for themselves, and the task's name stands before the texts that a model
    /// reads (Raffel et al. 2020, appendix D).
    pub(crate) glue: bool,
    /// The column names under which the texts are looked for, best first. Where each has a pair, the task cannot do without.
    pub(crate) columns: &'static [Layout],
    /// The column names under which the label is looked for, best first.
    pub(crate) label_columns: &'static [&'static str],
    /// The columns of a file whose first line is no header.
    pub(crate) headerless: Option<&'static [&'static str]>,
    /// Whether the published file has lines with too few or too many fields, which are left out.
    pub(crate) ragged: bool,
    /// A folder's files with training examples, best first.
    pub(crate) train: &'static [&'static str],
    /// Those with development examples.
    pub(crate) dev: &'static [&'static str],
    /// Label names by class, in the order of `datasets` and `transformers`; none where the data decides.
    pub(crate) labels: Option<&'static [&'static str]>,
    /// What the classes are called in words, as `datasets` names them, where that is not the label.
    pub(crate) words: Option<&'static [&'static str]>,
    /// What stands before each text where a model reads text, in this order; a lone text of a task that is not GLUE's stands for itself.
    pub(crate) reads: &'static [(&'static str, Which)],
    /// Whether a number is put into words rounded to the nearest 0.2.
    pub(crate) fifths: bool,
    /// The metrics that are reported with so many labels: GLUE's own for its tasks.
    pub(crate) metrics: fn(usize) -> &'static [Metric],
    /// The metric that picks the best checkpoint unless the recipe names another: the one that the BERT paper reports.
    pub(crate) main_metric: Metric,
}

const SENTENCES: Layout = ("sentence1", Some("sentence2"));
const PAIR: Layout = ("text", Some("pair"));
const LABEL: &[&str] = &["label"];
const ENTAILMENT: Option<&[&str]> = Some(&["entailment", "not_entailment"]);
/// The training file of MRPC's own download, which has the development examples too.
pub(crate) const MSR: &str = "msr_paraphrase_train.txt";

/// Any data.
const ANY: Spec = Spec {
    name: "",
    answer: Answer::Class,
    glue: false,
    columns: &[SENTENCES, PAIR, ("text", None), ("sentence", None)],
    label_columns: LABEL,
    headerless: None,
    ragged: false,
    train: &["train.tsv"],
    dev: &["dev.tsv"],
    labels: None,
    words: None,
    reads: &[("sentence1", Which::First), ("sentence2", Which::Second)],
    fifths: false,
    metrics: |_| &[Metric::Accuracy],
    main_metric: Metric::Accuracy,
};

/// A task of GLUE's.
const GLUE: Spec = Spec { glue: true, labels: Some(&["0", "1"]), ..ANY };

/// One text.
const SINGLE: Spec =
    Spec { columns: &[("sentence", None), ("text", None)], reads: &[("sentence", Which::First)], ..GLUE };

/// A task about numbers.
const NUMBER: Spec = Spec {
    answer: Answer::Number,
    metrics: |_| &[Metric::Pearson, Metric::Spearman],
    main_metric: Metric::Spearman,
    ..ANY
};

/// Texts, each of whose tokens is predicted.
const TOKENS: Spec = Spec {
    answer: Answer::Tokens,
    columns: &[("text", None)],
    label_columns: &[],
    train: &["train.jsonl", "train.ndjson", "train.json", "train.parquet", "train.csv", "train.tsv", "train.txt"],
    dev: &[
        "valid.jsonl",
        "validation.jsonl",
        "dev.jsonl",
        "valid.ndjson",
        "validation.ndjson",
        "dev.ndjson",
        "valid.json",
        "validation.json",
        "dev.json",
        "valid.parquet",
        "validation.parquet",
        "dev.parquet",
        "valid.csv",
        "validation.csv",
        "dev.csv",
        "valid.tsv",
        "validation.tsv",
        "dev.tsv",
        "valid.txt",
        "validation.txt",
        "dev.txt",
    ],
    metrics: |_| &[Metric::TokenAccuracy, Metric::Perplexity],
    main_metric: Metric::Loss,
    ..ANY
};

/// Declares the tasks, each with its row.
macro_rules! tasks {
    ($($(#[$doc:meta])* $task:ident => $spec:expr,)+) => {
        /// What is predicted from a text or a pair of texts, or of a text.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Task { $($(#[$doc])* $task,)+ }

        const SPECS: &[Spec] = &[$($spec,)+];

        impl Task {
            /// Every task, in the order in which errors and help list them.
            pub const ALL: [Task; SPECS.len()] = [$(Task::$task,)+];
        }
    };
}

tasks! {
    /// Is a sentence grammatical?
    Cola => Spec {
        name: "cola",
        headerless: Some(&["source", "label", "star", "sentence"]),
        words: Some(&["unacceptable", "acceptable"]),
        metrics: |_| &[Metric::Matthews],
        main_metric: Metric::Matthews,
        ..SINGLE
    },
    /// Sentiment of a film review's phrase.
    Sst2 => Spec { name: "sst2", words: Some(&["negative", "positive"]), ..SINGLE },
    /// Do two sentences of news say the same?
    Mrpc => Spec {
        name: "mrpc",
        columns: &[("#1 String", Some("#2 String")), SENTENCES, PAIR],
        label_columns: &["Quality", "label"],
        train: &["train.tsv", MSR],
        words: Some(&["not_equivalent", "equivalent"]),
        metrics: |_| &[Metric::Accuracy, Metric::F1],
        main_metric: Metric::F1,
        ..GLUE
    },
    /// Do two questions ask the same?
    Qqp => Spec {
        name: "qqp",
        columns: &[("question1", Some("question2")), SENTENCES, PAIR],
        label_columns: &["is_duplicate", "label"],
        ragged: true,
        words: Some(&["not_duplicate", "duplicate"]),
        reads: &[("question1", Which::First), ("question2", Which::Second)],
        metrics: |_| &[Metric::Accuracy, Metric::F1],
        main_metric: Metric::F1,
        ..GLUE
    },
    /// Does a premise entail a hypothesis, contradict it, or neither?
    Mnli => Spec {
        name: "mnli",
        columns: &[("premise", Some("hypothesis")), SENTENCES, PAIR],
        label_columns: &["gold_label", "label"],
        dev: &["dev_matched.tsv", "dev.tsv"],
        labels: Some(&["entailment", "neutral", "contradiction"]),
        reads: &[("hypothesis", Which::Second), ("premise", Which::First)],
        ..GLUE
    },
    /// Does a sentence answer a question?
    Qnli => Spec {
        name: "qnli",
        columns: &[("question", Some("sentence")), SENTENCES, PAIR],
        labels: ENTAILMENT,
        reads: &[("question", Which::First), ("sentence", Which::Second)],
        ..GLUE
    },
    /// Does the first sentence entail the second?
    Rte => Spec {
        name: "rte",
        columns: &[("premise", Some("hypothesis")), SENTENCES, PAIR],
        labels: ENTAILMENT,
        ..GLUE
    },
    /// How similar are two sentences, from 0 to 5?
    Stsb => Spec {
        name: "stsb",
        glue: true,
        columns: &[SENTENCES, PAIR],
        label_columns: &["score", "label"],
        fifths: true,
        ..NUMBER
    },
    /// Any single-label classification; the labels are those of the training data.
    Classify => Spec {
        name: "classify",
        metrics: |n_labels| match n_labels {
            2 => &[Metric::Accuracy, Metric::F1],
            _ => &[Metric::Accuracy, Metric::MacroF1],
        },
        ..ANY
    },
    /// Any regression to one number.
    Regress => Spec { name: "regress", label_columns: &["label", "score"], ..NUMBER },
    /// What the assistant says in conversations, or what follows a prompt.
    Chat => Spec { name: "chat", ..TOKENS },
    /// Every token of a text.
    Text => Spec { name: "text", ..TOKENS },
}

impl Task {
    /// Its row.
    pub(crate) fn spec(self) -> &'static Spec {
        &SPECS[self as usize]
    }

    /// The name used in recipes and on the command line.
    pub fn name(self) -> &'static str {
        self.spec().name
    }

    /// The metrics that are reported: GLUE's own for its tasks. `classify` reports F1 with two labels, its mean over all with more.
    pub fn metrics(self, n_labels: usize) -> &'static [Metric] {
        (self.spec().metrics)(n_labels)
    }

    /// The metric that picks the best checkpoint unless the recipe names another: the one that the BERT paper reports.
    pub fn main_metric(self) -> Metric {
        self.spec().main_metric
    }

    /// Whether the label is a number and the loss the squared error.
    pub fn is_regression(self) -> bool {
        self.spec().answer == Answer::Number
    }

    /// Whether the loss is over the tokens of the texts themselves.
    pub fn is_of_tokens(self) -> bool {
        self.spec().answer == Answer::Tokens
    }

    /// Whether the task cannot do without a second text.
    pub fn needs_pair(self) -> bool {
        self.spec().columns.iter().all(|(_, pair)| pair.is_some())
    }

    /// The label names by class index, in the order of `datasets` and `transformers`; `None` where the training data
    /// decides (`classify`) and for regression.
    pub fn labels(self) -> Option<&'static [&'static str]> {
        self.spec().labels
    }

    /// What the classes are called in words, by class index, as `datasets` names them; `None` where [`Task::labels`] is.
    pub fn class_names(self) -> Option<&'static [&'static str]> {
        self.spec().words.or(self.labels())
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for Task {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.name())
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
            assert!(task.is_of_tokens() || task.metrics(2).contains(&task.main_metric()));
        }
    }
}
