//! `colrow compare`: runs side by side.

use std::path::PathBuf;

use colrow_tensor::{Error, Result};
use serde_json::{Value, json};

use crate::output::{self, print, print_json};
use crate::report::{self, Group, Run, Spread, groups};
use crate::units;

/// Put runs in one table, and with --out in one page with pictures. Runs that differ in their seed only are one line: mean ± deviation.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run folders of one task.
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// Write an offline HTML page: this table, the metric against peak memory and time, curves.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A figure of a run by its name in JSON.
type Figure = (&'static str, fn(&Run) -> Option<f64>);

const FIGURES: [Figure; 5] = [
    ("kept_bytes", |run| run.kept_bytes().map(|b| b as f64)),
    ("peak_bytes", |run| run.peak_bytes().map(|b| b as f64)),
    ("peak_rss_bytes", |run| run.of(|s| s.peak_rss_bytes).map(|b| b as f64)),
    ("step_seconds", Run::step_seconds),
    ("seconds", |run| run.of(|s| s.seconds)),
];

pub(crate) fn run(args: &Args) -> Result<()> {
    output::check_page(args.out.as_deref())?;
    if let Some(out) = &args.out {
        report::check_out(out, &args.runs)?;
    }
    let runs = Run::load_all(&args.runs)?;
    let metric = metric_of(&runs)?;
    let groups = groups(&runs);
    for [a, b] in groups.iter().flat_map(Group::of_one_seed) {
        output::warn(&format!(
            "{} and {} are of one recipe and one seed: a deviation over both says nothing",
            a.dir.display(),
            b.dir.display()
        ));
    }
    if let Some(out) = &args.out {
        report::write("colrow: runs compared", &runs, out)?;
    }
    if args.json {
        return print_json(&json!({
            "metric": metric,
            "runs": runs.iter().map(|run| run_json(run, &metric)).collect::<Vec<_>>(),
            "groups": groups.iter().map(|group| group_json(group, &metric)).collect::<Vec<_>>(),
        }));
    }
    print(&table(&groups, &metric))
}

/// The metric that all runs are judged by.
fn metric_of(runs: &[Run]) -> Result<String> {
    let mut metric = None;
    for run in runs {
        if run.summary.is_none() {
            return Err(Error::usage("expected a run that has ended, found one without summary.json")
                .at(run.dir.display())
                .hint("go on with it by colrow train RECIPE --resume, or leave it out"));
        }
        let (task, name) = (run.of(|s| s.task.clone()), run.metric().unwrap_or_default());
        let this = (task, name);
        let first = metric.get_or_insert_with(|| this.clone());
        if *first != this {
            let words =
                |(task, name): &(Option<String>, String)| format!("{name} of {}", task.as_deref().unwrap_or("?"));
            return Err(Error::usage(format!(
                "expected runs of one task, found {} and {}",
                words(first),
                words(&this)
            ))
            .at(run.dir.display())
            .hint("compare the runs of each task by themselves"));
        }
    }
    Ok(metric.map(|(_, name)| name).unwrap_or_default())
}

fn run_json(run: &Run, metric: &str) -> Value {
    let mut json = json!({
        "name": run.name,
        "folder": run.dir,
        "task": run.of(|s| s.task.clone()),
        "best": run.best().map(|(_, value)| value),
        "final": run.last(metric),
        "steps": run.steps(),
    });
    for (name, value) in FIGURES {
        let value = value(run);
        json[name] = if name.ends_with("bytes") { json!(value.map(|v| v as u64)) } else { json!(value) };
    }
    json
}

fn group_json(group: &Group, metric: &str) -> Value {
    let spread = |spread: Option<Spread>| spread.map(|s| json!({"mean": s.mean, "deviation": s.deviation}));
    let mut json = json!({
        "name": group.name,
        "runs": group.runs.len(),
        "best": spread(group.spread(|run| run.best().map(|(_, value)| value))),
        "final": spread(group.spread(|run| run.last(metric))),
    });
    for (name, value) in FIGURES {
        json[name] = json!(spread(group.spread(value)));
    }
    json
}

fn table(groups: &[Group], metric: &str) -> String {
    let shown = |spread: Option<Spread>, show: &dyn Fn(f64) -> String| match spread {
        Some(Spread { mean, deviation: Some(d) }) => format!("{} ± {}", show(mean), show(d)),
        Some(Spread { mean, .. }) => show(mean),
        None => units::ABSENT.into(),
    };
    let mean = |spread: Option<Spread>, show: &dyn Fn(f64) -> String| {
        shown(spread.map(|s| Spread { deviation: None, ..s }), show)
    };
    let bytes = |v: f64| units::bytes(v as u64);
    let four = |v: f64| format!("{v:.4}");
    let head = [
        "run",
        "seeds",
        &format!("last {metric}"),
        &format!("best {metric}"),
        "kept",
        "peak",
        "peak of the process",
        "step",
        "time",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for group in groups {
        let [kept, peak, rss, step, total] = FIGURES.map(|(_, value)| group.spread(value));
        rows.push(vec![
            group.name.clone(),
            group.runs.len().to_string(),
            shown(group.spread(|run| run.last(metric)), &four),
            shown(group.spread(|run| run.best().map(|(_, value)| value)), &four),
            mean(kept, &bytes),
            mean(peak, &bytes),
            mean(rss, &bytes),
            mean(step, &units::duration),
            mean(total, &units::duration),
        ]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cell = |(i, text): (usize, &String)| {
            let width = widths[i];
            if i == 0 { format!("{text:<width$}") } else { format!("{text:>width$}") }
        };
        row.iter().enumerate().map(cell).collect::<Vec<_>>().join("  ")
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}
