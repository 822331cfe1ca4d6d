//! What a run folder holds, read for the report.

use crate::output;
use colrow_models::checkpoint::elsewhere;
use colrow_models::files;
use colrow_tensor::{Error, Result};
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// One run as its folder tells it. A run that was interrupted has no summary; then the figures come from its metrics.
#[derive(Debug, Default)]
pub(crate) struct Run {
    /// The folder that was read.
    pub(crate) dir: PathBuf,
    /// The run's name: from its summary, else the folder's name.
    pub(crate) name: String,
    /// `recipe.toml`, verbatim.
    pub(crate) recipe: Option<String>,
    /// Logged training steps, in increasing order of step.
    pub(crate) train: Vec<TrainPoint>,
    /// Evaluations, in increasing order of step.
    pub(crate) evals: Vec<EvalPoint>,
    /// Ratios that the run chose, in increasing order of step.
    pub(crate) ratios: Vec<RatioPoint>,
    /// `summary.json`.
    pub(crate) summary: Option<Summary>,
    /// What reading the folder showed that the reader should know.
    pub(crate) notes: Vec<String>,
}

/// A line of `metrics.jsonl` with `"kind":"train"`. A value that was not finite is `None`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct TrainPoint {
    pub(crate) step: u64,
    pub(crate) epoch: Option<f64>,
    pub(crate) loss: Option<f64>,
    pub(crate) lr: Option<f64>,
    pub(crate) grad_norm: Option<f64>,
    pub(crate) step_seconds: Option<f64>,
    pub(crate) tokens: Option<u64>,
    pub(crate) kept_bytes: Option<u64>,
    pub(crate) peak_bytes: Option<u64>,
}

/// A line of `metrics.jsonl` with `"kind":"eval"`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct EvalPoint {
    pub(crate) step: u64,
    pub(crate) epoch: Option<f64>,
    pub(crate) loss: Option<f64>,
    pub(crate) metrics: BTreeMap<String, Option<f64>>,
    #[serde(flatten)]
    pub(crate) by_class: ByClass,
}

/// A line of `metrics.jsonl` with `"kind":"ratios"`: the sites whose ratio is another than before.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct RatioPoint {
    pub(crate) step: u64,
    pub(crate) ratios: serde_json::Map<String, Value>,
}

/// `summary.json`; bytes are integers, times are seconds.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Summary {
    pub(crate) name: Option<String>,
    pub(crate) task: Option<String>,
    pub(crate) metric: Option<String>,
    pub(crate) best: Option<Best>,
    #[serde(rename = "final")]
    pub(crate) last: BTreeMap<String, Option<f64>>,
    pub(crate) steps: Option<u64>,
    pub(crate) epochs: Option<f64>,
    pub(crate) examples: Option<u64>,
    pub(crate) seconds: Option<f64>,
    pub(crate) step_seconds_median: Option<f64>,
    pub(crate) tokens_per_second: Option<f64>,
    pub(crate) kept_bytes: Option<u64>,
    pub(crate) peak_bytes: Option<u64>,
    pub(crate) peak_bytes_by_class: BTreeMap<String, u64>,
    pub(crate) peak_rss_bytes: Option<u64>,
    pub(crate) truncated_examples: Option<u64>,
    pub(crate) warnings: Vec<String>,
    pub(crate) ledger: Vec<LedgerEntry>,
    pub(crate) timeline: Vec<Moment>,
    pub(crate) policy: Vec<SitePolicy>,
    #[serde(flatten)]
    pub(crate) by_class: ByClass,
    pub(crate) version: Option<String>,
    pub(crate) threads: Option<u64>,
}

/// The best evaluation by the run's metric.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Best {
    pub(crate) step: u64,
    pub(crate) value: Option<f64>,
}

/// Something an op keeps for the backward pass.
#[derive(Debug, Deserialize)]
pub(crate) struct LedgerEntry {
    pub(crate) site: String,
    pub(crate) op: String,
    #[serde(default)]
    pub(crate) what: String,
    #[serde(default)]
    pub(crate) keep: Value,
    pub(crate) bytes: u64,
}

/// Live bytes by class at one point of a step.
#[derive(Debug, Deserialize)]
pub(crate) struct Moment {
    pub(crate) phase: String,
    #[serde(default)]
    pub(crate) at: String,
    pub(crate) live: BTreeMap<String, u64>,
}

impl Moment {
    /// Bytes of all classes.
    pub(crate) fn total(&self) -> u64 {
        self.live.values().fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }
}

/// An evaluation class by class.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ByClass {
    pub(crate) classes: Vec<ClassScore>,
    /// Examples of a class (row) by the class that was predicted (column); one more column where answers were no label.
    pub(crate) confusion: Vec<Vec<u64>>,
    /// The class that F1 is of.
    pub(crate) positive: Option<String>,
    pub(crate) macro_f1: Option<f64>,
}

/// How a class fares in an evaluation.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ClassScore {
    pub(crate) name: String,
    pub(crate) precision: Option<f64>,
    pub(crate) recall: Option<f64>,
    pub(crate) f1: Option<f64>,
    pub(crate) support: Option<u64>,
}

/// What a site was told to keep.
#[derive(Debug, Deserialize)]
pub(crate) struct SitePolicy {
    pub(crate) site: String,
    #[serde(default)]
    pub(crate) keep: Value,
}

impl Run {
    /// Reads run folders, one that is given again once.
    ///
    /// # Errors
    /// Those of [`Run::load`].
    pub(crate) fn load_all(dirs: &[PathBuf]) -> Result<Vec<Run>> {
        let (mut runs, mut seen) = (Vec::new(), BTreeSet::new());
        for dir in dirs {
            let run = Run::load(dir)?;
            match seen.insert(dir.canonicalize().unwrap_or_else(|_| dir.clone())) {
                true => runs.push(run),
                false => output::warn(&format!("{}: the run was given before, and counts once", dir.display())),
            }
        }
        Ok(runs)
    }

    /// Reads a run folder: any of `recipe.toml`, `metrics.jsonl` and `summary.json`.
    ///
    /// A torn last line of `metrics.jsonl` is passed over; other lines that cannot be read are counted in the notes.
    ///
    /// # Errors
    /// The folder is not there or holds none of the three files, a file cannot be read, or `summary.json` is not valid.
    pub(crate) fn load(dir: &Path) -> Result<Run> {
        let hint = "pass the folder that `colrow train` wrote";
        if !dir.is_dir() {
            let found = if dir.exists() { "found a file" } else { "there is no such folder" };
            return Err(Error::new(format!("expected a run folder, {found}")).at(dir.display()).hint(hint));
        }
        let recipe = read_text(&dir.join("recipe.toml"))?;
        let metrics = read_text(&dir.join("metrics.jsonl"))?;
        let summary = read_text(&dir.join("summary.json"))?;
        if recipe.is_none() && metrics.is_none() && summary.is_none() {
            if let Some(error) = elsewhere::folder_of_runs(dir, "a run folder") {
                return Err(error);
            }
            let what = "expected a run folder with recipe.toml, metrics.jsonl or summary.json, found none of them";
            return Err(Error::new(what).at(dir.display()).hint(hint));
        }
        let summary: Option<Summary> = match summary {
            None => None,
            Some(text) => Some(serde_json::from_str(&text).map_err(|e| {
                Error::new(format!("expected the summary of a run as JSON: {e}")).at(dir.join("summary.json").display())
            })?),
        };
        let folder = dir.canonicalize().ok().and_then(|d| d.file_name().map(|n| n.to_string_lossy().into_owned()));
        let name = summary.as_ref().and_then(|s| s.name.clone()).filter(|n| !n.trim().is_empty());
        let mut run = Run {
            dir: dir.to_path_buf(),
            name: name.or(folder).unwrap_or_else(|| dir.display().to_string()),
            recipe,
            summary,
            ..Run::default()
        };
        run.read_metrics(metrics.as_deref().unwrap_or(""));
        Ok(run)
    }

    fn read_metrics(&mut self, text: &str) {
        let (mut unreadable, mut torn) = (0, false);
        for line in text.split_inclusive('\n').filter(|l| !l.trim().is_empty()) {
            if !self.read_line(line.trim()) {
                if line.ends_with('\n') {
                    unreadable += 1;
                } else {
                    torn = true;
                }
            }
        }
        if unreadable > 0 {
            self.notes.push(format!("{unreadable} of the lines of metrics.jsonl could not be read and are left out."));
        }
        if torn && self.summary.is_some() {
            self.notes.push("The last line of metrics.jsonl is torn and left out.".into());
        }
        let lost = self.train.iter().filter(|p| p.loss.is_none()).count();
        if lost > 0 {
            self.notes.push(format!("The loss was not finite at {lost} of {} logged steps.", self.train.len()));
        }
        if self.summary.is_none() {
            let last = self.train.last().map_or(0, |p| p.step);
            self.notes.push(format!(
                "This run has no summary.json: it was interrupted or is still going. Its figures are those logged up to step {last}."
            ));
        }
    }

    /// Whether the line was read. A resumed run writes steps again that it had logged after its checkpoint: the later
    /// line counts.
    fn read_line(&mut self, line: &str) -> bool {
        let Ok(value) = serde_json::from_str::<Value>(line) else { return false };
        match value.get("kind").and_then(Value::as_str) {
            Some("train") => {
                let Ok(point) = serde_json::from_value::<TrainPoint>(value) else { return false };
                if self.train.last().is_some_and(|last| last.step >= point.step) {
                    self.train.retain(|p| p.step < point.step);
                    self.evals.retain(|p| p.step < point.step);
                    self.ratios.retain(|p| p.step < point.step);
                }
                self.train.push(point);
            }
            Some("eval") => {
                let Ok(point) = serde_json::from_value::<EvalPoint>(value) else { return false };
                self.evals.retain(|p| p.step < point.step);
                self.evals.push(point);
            }
            Some("ratios") => {
                let Ok(point) = serde_json::from_value::<RatioPoint>(value) else { return false };
                self.ratios.retain(|p| p.step < point.step);
                self.ratios.push(point);
            }
            // Other kinds may be added.
            Some(_) => {}
            None => return false,
        }
        true
    }

    /// A field of the summary, if there is one.
    pub(crate) fn of<T>(&self, field: impl Fn(&Summary) -> Option<T>) -> Option<T> {
        self.summary.as_ref().and_then(field)
    }

    /// A list of the summary, empty if there is none.
    pub(crate) fn list<T>(&self, field: impl Fn(&Summary) -> &[T]) -> &[T] {
        self.summary.as_ref().map_or(&[], field)
    }

    /// The metric that chooses the best checkpoint: the summary's, else the first that was logged.
    pub(crate) fn metric(&self) -> Option<String> {
        let logged = || self.evals.iter().find_map(|e| e.metrics.keys().next().cloned());
        self.of(|s| s.metric.clone()).or_else(logged)
    }

    /// The metric's values over the run, `loss` being the evaluation loss.
    pub(crate) fn eval_series(&self, metric: &str) -> Vec<(u64, Option<f64>)> {
        let value =
            |e: &EvalPoint| e.metrics.get(metric).copied().flatten().or(if metric == "loss" { e.loss } else { None });
        self.evals.iter().map(|e| (e.step, value(e))).collect()
    }

    /// The best evaluation: the summary's, else the best logged so far.
    pub(crate) fn best(&self) -> Option<(u64, f64)> {
        if let Some(Best { step, value: Some(value) }) = self.of(|s| s.best) {
            return Some((step, value));
        }
        let metric = self.metric()?;
        let sign = if lower_is_better(&metric) { -1.0 } else { 1.0 };
        let finite = self.eval_series(&metric).into_iter().filter_map(|(step, v)| Some((step, v?)));
        // The first of equal values is the best.
        finite.reduce(|best, next| if sign * next.1 > sign * best.1 { next } else { best })
    }

    /// The last evaluation class by class, if it was told.
    pub(crate) fn by_class(&self) -> Option<&ByClass> {
        let ended = self.summary.as_ref().map(|s| &s.by_class);
        let all = ended.into_iter().chain(self.evals.iter().rev().map(|e| &e.by_class));
        all.into_iter().find(|b| !b.classes.is_empty())
    }

    /// A metric after the last step; of an interrupted run that of its last evaluation.
    pub(crate) fn last(&self, metric: &str) -> Option<f64> {
        let summary = self.of(|s| s.last.get(metric).copied().flatten());
        summary.or_else(|| self.eval_series(metric).last().and_then(|p| p.1))
    }

    /// Bytes kept for the backward pass of a step; of an interrupted run the most that a logged step kept.
    pub(crate) fn kept_bytes(&self) -> Option<u64> {
        self.of(|s| s.kept_bytes).or_else(|| self.train.iter().filter_map(|p| p.kept_bytes).max())
    }

    /// The most bytes that were live at once.
    pub(crate) fn peak_bytes(&self) -> Option<u64> {
        self.of(|s| s.peak_bytes).or_else(|| self.train.iter().filter_map(|p| p.peak_bytes).max())
    }

    /// Median seconds per step.
    pub(crate) fn step_seconds(&self) -> Option<f64> {
        self.of(|s| s.step_seconds_median).or_else(|| {
            let mut all: Vec<f64> = self.train.iter().filter_map(|p| p.step_seconds).collect();
            all.sort_by(f64::total_cmp);
            all.get(all.len() / 2).copied()
        })
    }

    /// Steps done.
    pub(crate) fn steps(&self) -> Option<u64> {
        self.of(|s| s.steps).or(self.train.last().map(|p| p.step))
    }

    /// Epochs done.
    pub(crate) fn epochs(&self) -> Option<f64> {
        let logged = self.train.iter().map(|p| p.epoch).chain(self.evals.iter().map(|p| p.epoch));
        self.of(|s| s.epochs).or_else(|| logged.flatten().reduce(f64::max))
    }

    /// Tokens per second.
    pub(crate) fn tokens_per_second(&self) -> Option<f64> {
        self.of(|s| s.tokens_per_second).or_else(|| {
            let timed = self.train.iter().filter_map(|p| Some((p.tokens? as f64, p.step_seconds?)));
            let (tokens, seconds) = timed.fold((0.0, 0.0), |sum, p| (sum.0 + p.0, sum.1 + p.1));
            (seconds > 0.0).then(|| tokens / seconds)
        })
    }
}

fn lower_is_better(metric: &str) -> bool {
    ["loss", "mse", "rmse", "mae", "perplexity"].contains(&metric)
}

/// More than the metrics of any run; such a file is not one that a run wrote.
const MOST_BYTES: u64 = 1 << 30;

/// A file's text, `None` if there is no such file. Bytes that are not UTF-8 show as replacement characters.
fn read_text(path: &Path) -> Result<Option<String>> {
    match files::read(path, MOST_BYTES) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::from(e).at(path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    #[test]
    fn an_interrupted_run_is_read_from_its_metrics() {
        let metrics = r#"{"kind":"train","step":1,"loss":0.7,"step_seconds":0.2,"tokens":100,"kept_bytes":10,"new":[1]}
{"kind":"train","step":2,"loss":null,"step_seconds":0.4,"tokens":200,"kept_bytes":30,"peak_bytes":99}
{"kind":"eval","step":2,"epoch":1.0,"loss":0.5,"metrics":{"accuracy":0.8,"f1":null}}
{"kind":"news","step":3}
not json

{"kind":"eval","step":3,"loss":0.4,"metrics":{"accuracy":0.8}}
{"kind":"train","step":3,"lo"#;
        let dir = folder(&[("metrics.jsonl", metrics)]);
        let run = Run::load(dir.path()).unwrap();
        assert_eq!(run.train.len(), 2);
        assert_eq!(run.name, dir.path().file_name().unwrap().to_str().unwrap());
        assert_eq!(run.best(), Some((2, 0.8)));
        assert_eq!((run.kept_bytes(), run.peak_bytes(), run.steps()), (Some(30), Some(99), Some(2)));
        assert_eq!((run.step_seconds(), run.epochs()), (Some(0.4), Some(1.0)));
        assert!((run.tokens_per_second().unwrap() - 500.0).abs() < 1e-9);
        assert_eq!(run.eval_series("loss"), [(2, Some(0.5)), (3, Some(0.4))]);
        let notes = run.notes.join("\n");
        assert!(notes.contains("1 of the lines"), "{notes}");
        assert!(notes.contains("not finite at 1 of 2"), "{notes}");
        assert!(notes.contains("no summary.json") && notes.contains("up to step 2"), "{notes}");
    }

    #[test]
    fn the_summary_wins_over_the_metrics() {
        let summary = r#"{"name":"lean","metric":"loss","best":{"step":7,"value":0.25},"kept_bytes":5,"steps":9,
            "final":{"loss":null},"threads":null,"other":{}}"#;
        let dir = folder(&[
            ("summary.json", summary),
            ("metrics.jsonl", "{\"kind\":\"train\",\"step\":1,\"loss\":1.0,\"kept_bytes\":10}\n"),
        ]);
        let run = Run::load(dir.path()).unwrap();
        assert_eq!((run.name.as_str(), run.best(), run.kept_bytes()), ("lean", Some((7, 0.25)), Some(5)));
        assert!(run.notes.is_empty(), "{:?}", run.notes);
    }

    #[test]
    fn steps_written_again_after_a_resume_count_once() {
        let mut metrics = String::new();
        for (kind, step, loss) in [
            ("train", 10, 1.0),
            ("train", 20, 0.9),
            ("eval", 20, 0.8),
            ("train", 30, 0.7),
            ("train", 20, 0.6),
            ("eval", 20, 0.5),
        ] {
            metrics += &format!("{{\"kind\":\"{kind}\",\"step\":{step},\"loss\":{loss}}}\n");
        }
        let run = Run::load(folder(&[("metrics.jsonl", &metrics)]).path()).unwrap();
        let train: Vec<_> = run.train.iter().map(|p| (p.step, p.loss.unwrap())).collect();
        assert_eq!(train, [(10, 1.0), (20, 0.6)]);
        assert_eq!(run.eval_series("loss"), [(20, Some(0.5))]);
    }

    #[test]
    fn what_is_not_a_run_folder_is_refused() {
        let dir = folder(&[("summary.json", "{\"kept_bytes\":\"many\"}")]);
        let message = |path: &Path| Run::load(path).unwrap_err().to_string();
        let broken = message(dir.path());
        assert!(
            broken.contains("expected the summary of a run as JSON") && broken.contains("summary.json"),
            "{broken}"
        );
        assert!(message(&dir.path().join("none")).contains("there is no such folder"));
        assert!(message(&dir.path().join("summary.json")).contains("found a file"));
        let empty = tempfile::tempdir().unwrap();
        assert!(message(empty.path()).contains("found none of them"));
    }
}
